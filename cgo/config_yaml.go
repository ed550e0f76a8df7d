package multidb

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"gopkg.in/yaml.v2"
)

// yamlNode is a YAML value as it is written. Decoding into Go's types would lose
// keys that are written twice, and the text of numbers.
type yamlNode struct {
	kind   yamlKind
	text   string               // of a scalar
	keys   []string             // of a mapping, in order, repetitions included
	values map[string]*yamlNode // of a mapping
}

type yamlKind int

const (
	yamlNull yamlKind = iota
	yamlScalar
	yamlList
	yamlMapping
)

// String describes the kind in an error.
func (k yamlKind) String() string {
	switch k {
	case yamlNull:
		return "nothing"
	case yamlScalar:
		return "a plain value"
	case yamlList:
		return "a list"
	default:
		return "a section"
	}
}

// UnmarshalYAML implements yaml.Unmarshaler. It is not called for null.
func (n *yamlNode) UnmarshalYAML(unmarshal func(any) error) error {
	var list []any
	if unmarshal(&list) == nil {
		n.kind = yamlList
		return nil
	}

	var items yaml.MapSlice
	if unmarshal(&items) != nil {
		n.kind = yamlScalar
		return unmarshal(&n.text)
	}
	n.kind = yamlMapping
	if err := unmarshal(&n.values); err != nil {
		return err
	}
	for _, item := range items {
		n.keys = append(n.keys, keyText(item.Key))
	}
	// What a merge key (<<) brought in is not among the items.
	var merged []string
	for key := range n.values {
		if !slices.Contains(n.keys, key) {
			merged = append(merged, key)
		}
	}
	slices.Sort(merged)
	n.keys = append(n.keys, merged...)
	return nil
}

func keyText(key any) string { return fmt.Sprint(key) }

// findSection returns the multi_db section of a configuration file; nil if there
// is none. Keys that look like it but are not are errors.
func findSection(yamlText []byte) (*yamlNode, error) {
	var items yaml.MapSlice
	if err := yaml.Unmarshal(yamlText, &items); err != nil {
		return nil, err
	}
	var written []string
	for _, item := range items {
		switch key := keyText(item.Key); {
		case key == "multi_db" || key == "multi-db":
			written = append(written, key)
		case isNearMultiDB(key):
			return nil, fmt.Errorf("%s: unknown key; did you mean multi_db?", printable(key))
		}
	}
	switch len(written) {
	case 0:
		return nil, nil
	case 1:
	default:
		return nil, fmt.Errorf("%s: written twice; use one multi_db section", written[len(written)-1])
	}

	var file struct {
		Underscore *yamlNode `yaml:"multi_db"`
		Hyphen     *yamlNode `yaml:"multi-db"`
	}
	if err := yaml.Unmarshal(yamlText, &file); err != nil {
		return nil, err
	}
	if file.Underscore != nil {
		return file.Underscore, nil
	} else if file.Hyphen != nil {
		return file.Hyphen, nil
	}
	return &yamlNode{}, nil
}

// isNearMultiDB reports whether a top-level key is multi_db misspelt. Keys that
// begin with x- are left alone: by custom they hold what others refer to.
func isNearMultiDB(key string) bool {
	if strings.HasPrefix(key, "x-") {
		return false
	}
	plain := strings.ToLower(strings.NewReplacer("-", "", "_", "", " ", "", ".", "").Replace(key))
	for _, name := range []string{"multidb", "multidbs", "multidatabase", "multidatabases", "ultrasimple"} {
		if editDistance(plain, name) <= 2 {
			return true
		}
	}
	return false
}

func isKnownKey(section, key string) bool {
	return slices.Contains(sectionKeys[section], key)
}

// nearestKey returns the known key that is most like key: one of the section, or
// one that was meant for another, which is then named with it.
func nearestKey(section, key string) string {
	key = strings.ToLower(key)
	nearest, best := "", math.MaxInt
	for _, name := range []string{section, "multi_db", "multi_db.s3", "multi_db.file"} {
		for _, known := range sectionKeys[name] {
			d := editDistance(key, known)
			if len(key) >= 3 && strings.HasPrefix(known, key) {
				d = min(d, 2) // an abbreviation
			}
			if name == section && d < best {
				nearest, best = known, d
			} else if d <= 1 && d < best {
				nearest, best = name+"."+known, d
			}
		}
	}
	return nearest
}

// editDistance counts the insertions, deletions, substitutions and exchanges of
// neighbours that turn a into b (optimal string alignment, by bytes).
func editDistance(a, b string) int {
	const limit = 64 // longer than any key: beyond it everything is equally far
	if len(a) > limit || len(b) > limit {
		return limit
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, before
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j]+cost, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
