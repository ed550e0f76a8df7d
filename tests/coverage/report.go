// Command coverage prints what gcov has counted below directories of the build: lines
// and branches by room and by file of csrc/, and then what was not reached.
//
// A line that holds a comment beginning with "unreached:" is left out, and so is the
// block that it opens. The comment gives the reason; the report counts them. They are
// for what no test can bring about (a call that cannot fail as it is used here), never
// for what is only hard to reach.
//
// A line counts as reached if any of the objects that contain it ran it; so does each
// of its branches. gcov's branches are those of the compiled code: both outcomes of
// every condition, and each case of a switch.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// gcovFile is a part of what gcov -j writes.
type gcovFile struct {
	File  string `json:"file"`
	Lines []struct {
		Number   int    `json:"line_number"`
		Function string `json:"function_name"`
		Count    uint64 `json:"count"`
		Branches []struct {
			Count uint64 `json:"count"`
		} `json:"branches"`
	} `json:"lines"`
}

type place struct {
	line     int
	function string // an inline function of a header is in many objects
}

type count struct {
	hits     uint64
	branches []uint64
}

type tally struct{ lines, linesHit, branches, branchesHit, excluded int }

func (t *tally) add(o tally) {
	t.lines += o.lines
	t.linesHit += o.linesHit
	t.branches += o.branches
	t.branchesHit += o.branchesHit
	t.excluded += o.excluded
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: coverage DIRECTORY...")
		os.Exit(2)
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "coverage:", err)
		os.Exit(1)
	}
}

func run(dirs []string) error {
	files := make(map[string]map[place]*count)
	for _, dir := range dirs {
		err := filepath.WalkDir(filepath.Join(dir, "csrc"), func(path string, e fs.DirEntry, err error) error {
			// Without a .gcda gcov says 0 for each line: what no test has touched counts, too.
			if err != nil || filepath.Ext(path) != ".gcno" {
				return err
			}
			return read(path, files)
		})
		if err != nil {
			return err
		}
	}
	if len(files) == 0 {
		return errors.New("nothing was built there")
	}
	return print(files)
}

// read adds the counts of one object.
func read(path string, files map[string]map[place]*count) error {
	out, err := exec.Command("gcov", "-j", "-t", "-b", path).Output()
	if err != nil {
		return fmt.Errorf("gcov %s: %w", path, err)
	}
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var object struct {
			Files []gcovFile `json:"files"`
		}
		if err := dec.Decode(&object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("gcov %s: %w", path, err)
		}
		for _, f := range object.Files {
			name := filepath.Clean(f.File)
			if !strings.HasPrefix(name, "csrc/") {
				continue
			}
			if files[name] == nil {
				files[name] = make(map[place]*count)
			}
			for _, l := range f.Lines {
				at := place{l.Number, l.Function}
				c := files[name][at]
				if c == nil {
					c = &count{branches: make([]uint64, len(l.Branches))}
					files[name][at] = c
				}
				c.hits += l.Count
				for i, b := range l.Branches[:min(len(l.Branches), len(c.branches))] {
					c.branches[i] += b.Count
				}
			}
		}
	}
}

var (
	marker    = regexp.MustCompile(`/\* unreached: \S`)
	opens     = regexp.MustCompile(`\{\s*(/\*.*)?$`)
	indention = regexp.MustCompile(`^\s*`)
)

// excluded returns the numbers of the lines that are left out.
func excluded(source []string) map[int]bool {
	out := make(map[int]bool)
	for i, text := range source {
		if !marker.MatchString(text) {
			continue
		}
		out[i+1] = true
		if !opens.MatchString(text) {
			continue
		}
		end := indention.FindString(text) + "}"
		for j := i + 1; j < len(source) && !strings.HasPrefix(source[j], end); j++ {
			out[j+1] = true
		}
	}
	return out
}

// examine counts one file, and describes what was not reached in it.
func examine(name string, places map[place]*count) (tally, []string, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return tally{}, nil, err
	}
	source := strings.Split(string(text), "\n")
	out := excluded(source)
	numbers := make([]int, 0, len(places))
	byLine := make(map[int][]*count)
	for at, c := range places {
		if byLine[at.line] == nil {
			numbers = append(numbers, at.line)
		}
		byLine[at.line] = append(byLine[at.line], c)
	}
	slices.Sort(numbers)
	var t tally
	var missed []string
	for _, n := range numbers {
		if out[n] {
			t.excluded++
			continue
		}
		hits, branches, branchesHit := uint64(0), 0, 0
		for _, c := range byLine[n] {
			hits += c.hits
			for _, b := range c.branches {
				branches++
				if b > 0 {
					branchesHit++
				}
			}
		}
		t.lines++
		t.branches += branches
		t.branchesHit += branchesHit
		what := ""
		if hits > 0 {
			t.linesHit++
		} else {
			what = "line"
		}
		if hits > 0 && branchesHit < branches {
			what = fmt.Sprintf("%d of %d branches", branches-branchesHit, branches)
		}
		if what != "" && n <= len(source) {
			missed = append(missed, fmt.Sprintf("%s:%d: %s: %s", name, n, what, strings.TrimSpace(source[n-1])))
		}
	}
	return t, missed, nil
}

func percent(hit, all int) string {
	if all == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(hit)/float64(all))
}

func row(name string, t tally) {
	fmt.Printf("%-34s %6d %9s %8d %9s %9d\n", name, t.lines, percent(t.linesHit, t.lines), t.branches,
		percent(t.branchesHit, t.branches), t.excluded)
}

func print(files map[string]map[place]*count) error {
	names := make([]string, 0, len(files))
	tallies := make(map[string]tally)
	rooms := make(map[string]*tally)
	var roomNames, missed []string
	var total tally
	for name, places := range files {
		t, m, err := examine(name, places)
		if err != nil {
			return err
		}
		names = append(names, name)
		tallies[name] = t
		missed = append(missed, m...)
		room := filepath.Dir(name)
		if rooms[room] == nil {
			rooms[room] = new(tally)
			roomNames = append(roomNames, room)
		}
		rooms[room].add(t)
		total.add(t)
	}
	slices.Sort(names)
	slices.Sort(roomNames)
	fmt.Printf("%-34s %6s %9s %8s %9s %9s\n", "", "lines", "reached", "branches", "reached", "left out")
	for _, name := range names {
		row(name, tallies[name])
	}
	fmt.Println()
	for _, room := range roomNames {
		row(room+"/", *rooms[room])
	}
	row("total", total)
	fmt.Println("\nunreached")
	slices.SortStableFunc(missed, func(a, b string) int { return strings.Compare(file(a), file(b)) })
	for _, m := range missed {
		fmt.Println(m)
	}
	return nil
}

func file(line string) string {
	name, _, _ := strings.Cut(line, ":")
	return name
}
