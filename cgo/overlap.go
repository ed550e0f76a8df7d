package multidb

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// DBRef is an entry of dbs:, as far as it says which files it means. Path or Dir
// is set, absolute and clean.
type DBRef struct {
	Path      string
	Dir       string
	Pattern   string // of file names below Dir
	Recursive bool
}

// CheckOverlap returns an error if the discovery pattern could match a database
// of dbs: one process must not open a file twice, because closing it drops the
// locks of both. Names decide, then the files themselves: through symbolic links,
// and through directories mounted twice at or above the pattern's wildcard-free
// directory. Another name of a file below the pattern (a hard link) is no reason to
// refuse a configuration, as any tenant can make one: the core leaves it unopened.
func (c *Config) CheckOverlap(dbs []DBRef) error {
	if c == nil || len(dbs) == 0 {
		return nil
	}
	prefix, err := c.Prefix()
	if err != nil {
		return fmt.Errorf("multi_db.discovery_pattern: %w", err)
	}
	o := &overlap{config: c, prefix: prefix}

	for _, db := range dbs {
		if err := o.checkState(db); err != nil {
			return err
		}
		if db.Dir != "" {
			if err := o.checkDir(db); err != nil {
				return err
			}
			continue
		}
		for _, path := range o.names(db.Path) {
			if ok, err := c.Matches(path); err != nil {
				return err
			} else if ok {
				return o.errorf(db.Path, path)
			}
		}
	}
	return nil
}

// Where the core keeps its state unless state_dir says otherwise.
const (
	defaultStateDir = ".litestream-multi-db"
	stateFile       = "state.db"
)

type overlap struct {
	config *Config
	prefix string
}

func (o *overlap) errorf(entry, match string) error {
	also := ""
	if match != entry {
		also = fmt.Sprintf(" (as %s)", quote(match))
	}
	return fmt.Errorf("dbs: %s could be matched by multi_db.discovery_pattern %s%s; a database is replicated by one of the two, so change either",
		quote(entry), quote(o.config.DiscoveryPattern), also)
}

// names returns path and the other names that the pattern could know its file by.
func (o *overlap) names(path string) []string {
	names := []string{path}
	if real, err := realPath(path); err == nil && real != path {
		names = append(names, real)
	}
	if rest, ok := below(o.prefix, path); ok {
		names = append(names, filepath.Join(o.prefix, rest))
	}
	return names
}

// checkDir looks for files that both an entry with dir: and the pattern would find.
func (o *overlap) checkDir(db DBRef) error {
	pattern := o.patternComponents()
	if disjoint(pattern[len(pattern)-1].text, db.Pattern) {
		return nil
	}
	for _, dir := range o.names(db.Dir) {
		if ok, err := treeMatches(components(dir), pattern, db.Recursive); err != nil {
			return err
		} else if ok {
			return o.errorf(db.Dir, dir)
		}
	}
	// The entry's tree may hold the pattern's under another name.
	if rest, ok := below(db.Dir, o.prefix); ok && rest != "" && db.Recursive {
		return o.errorf(db.Dir, o.prefix)
	}
	return nil
}

// checkState looks for entries that would find the state file, which is a database
// that this process has open.
func (o *overlap) checkState(db DBRef) error {
	stateDir := o.config.StateDir
	if stateDir == "" {
		stateDir = filepath.Join(o.prefix, defaultStateDir)
	}
	entry, found := db.Path, false
	if db.Dir == "" {
		_, found = below(stateDir, db.Path)
		found = found || strings.HasPrefix(db.Path, stateDir+"/")
	} else if ok, err := filepath.Match(db.Pattern, stateFile); err == nil && ok {
		rest, inside := below(db.Dir, stateDir)
		entry, found = db.Dir, inside && (rest == "" || db.Recursive)
	}
	if !found {
		return nil
	}
	return fmt.Errorf("dbs: %s holds the state of multi_db in %s; set multi_db.state_dir to a directory elsewhere",
		quote(entry), quote(stateDir))
}

// patternComponent is one component of the pattern; below the wildcard-free
// directory it may hold wildcards.
type patternComponent struct {
	text    string
	literal bool
}

func (o *overlap) patternComponents() []patternComponent {
	var pattern []patternComponent
	for _, name := range components(o.prefix) {
		pattern = append(pattern, patternComponent{name, true})
	}
	all := components(o.config.DiscoveryPattern)
	for _, text := range all[min(len(pattern), len(all)):] {
		pattern = append(pattern, patternComponent{text, false})
	}
	return pattern
}

// treeMatches reports whether pattern could match a file directly in dir or, if
// recursive, anywhere below it.
func treeMatches(dir []string, pattern []patternComponent, recursive bool) (bool, error) {
	if len(pattern) == 0 {
		return false, nil
	}
	first := pattern[0]
	if first.text == "**" && !first.literal {
		if len(dir) == 0 {
			return recursive || len(pattern) <= 2, nil
		}
		if ok, err := treeMatches(dir, pattern[1:], recursive); ok || err != nil {
			return ok, err
		}
		return treeMatches(dir[1:], pattern, recursive)
	}
	if len(dir) == 0 {
		return recursive || len(pattern) == 1, nil
	}
	if len(pattern) == 1 {
		return false, nil
	}
	ok := first.text == dir[0]
	if !ok && !first.literal {
		// As a directory, whose names may end in -wal, of a pattern with a wildcard.
		var err error
		one := &Config{DiscoveryPattern: "/" + first.text + "/*"}
		if ok, err = one.Matches("/" + dir[0] + "/f"); err != nil {
			return false, err
		}
	}
	if !ok {
		return false, nil
	}
	return treeMatches(dir[1:], pattern[1:], recursive)
}

// disjoint reports whether two patterns of file names surely have no name in
// common: the text before their first wildcards, or after their last, differs.
func disjoint(a, b string) bool {
	const special = `*?[]{}\`
	ai, bi := strings.IndexAny(a, special), strings.IndexAny(b, special)
	if ai < 0 && bi < 0 {
		return a != b
	}
	head := func(s string, i int) string {
		if i < 0 {
			return s
		}
		return s[:i]
	}
	tail := func(s string) string { return s[strings.LastIndexAny(s, special)+1:] }
	ha, hb, ta, tb := head(a, ai), head(b, bi), tail(a), tail(b)
	return !strings.HasPrefix(ha, hb) && !strings.HasPrefix(hb, ha) ||
		!strings.HasSuffix(ta, tb) && !strings.HasSuffix(tb, ta)
}

// below reports whether path lies in dir, which exists, by any name, and where.
func below(dir, path string) (rest string, ok bool) {
	info, err := os.Stat(dir)
	if err != nil {
		return "", false
	}
	real, err := realPath(path)
	if err != nil {
		return "", false
	}
	for parent := real; ; parent = filepath.Dir(parent) {
		if fi, err := os.Stat(parent); err == nil && os.SameFile(fi, info) {
			return strings.TrimPrefix(strings.TrimPrefix(real, parent), "/"), true
		}
		if parent == filepath.Dir(parent) {
			return "", false
		}
	}
}

func components(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}
