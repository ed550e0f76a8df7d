//go:build cgo && linux

package multidb

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the core checks, with the key of the configuration file put before it.
func TestParseConfig_CoreErrors(t *testing.T) {
	for name, tt := range map[string]struct{ pattern, path, want string }{
		"Relative":   {"data/*.db", "{{a}}", "multi_db.discovery_pattern: "},
		"NoWildcard": {"/data/a.db", "{{a}}", "multi_db."},
		"Unclosed":   {"/data/{a/*.db", "{{a}}", "multi_db.discovery_pattern: "},
		"TwoDeep":    {"/data/**/x/**/*.db", "{{a}}/{{b}}/{{c}}", "multi_db.discovery_pattern: "},
		"Unbound":    {"/data/*.db", "{{a}}/{{b}}", "multi_db.s3.path: "},
		"Unused":     {"/data/*/*.db", "{{a}}", "multi_db.s3.path: "},
		"Malformed":  {"/data/*.db", "{{a}", "multi_db.s3.path: "},
		"Together":   {"/data/*/*.db", "{{a}}-{{b}}", "multi_db.s3.path: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseConfig([]byte("multi_db:\n  discovery_pattern: \""+tt.pattern+
				"\"\n  s3:\n    bucket: backups\n    path: \""+tt.path+"\"\n"), Globals{})
			if err == nil {
				t.Fatal("expected an error")
			}
			if !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("error %q does not begin with %q, on one line", err, tt.want)
			}
			if !errors.Is(err, ErrConfig) {
				t.Fatalf("error %q is no ErrConfig", err)
			}
		})
	}
}

func TestConfig_CheckOverlap(t *testing.T) {
	root := t.TempDir()
	if real, err := filepath.EvalSymlinks(root); err != nil {
		t.Fatal(err)
	} else {
		root = real
	}
	for _, dir := range []string{"data/a/tenants", "data/b/tenants/deep", "other/in", "empty"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"data/a/tenants/1.db", "data/b/tenants/2.db", "other/x.db", "other/single.db"} {
		if err := os.WriteFile(filepath.Join(root, file), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"links":         "data",
		"to-1.db":       "data/a/tenants/1.db",
		"other/tenants": "data/a/tenants",
	} {
		if err := os.Symlink(filepath.Join(root, to), filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(root, "data/a/tenants/1.db"), filepath.Join(root, "hard.db")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(root, "other/x.db"), filepath.Join(root, "other/y.db")); err != nil {
		t.Fatal(err)
	}

	const pattern = "data/*/tenants/*.db"
	dir := func(dir, glob string, recursive bool) DBRef {
		return DBRef{Dir: dir, Pattern: glob, Recursive: recursive}
	}
	for name, tt := range map[string]struct {
		pattern string
		db      DBRef
		overlap bool
	}{
		"Path":               {pattern, DBRef{Path: "data/a/tenants/1.db"}, true},
		"PathMissing":        {pattern, DBRef{Path: "data/c/tenants/9.db"}, true},
		"PathOther":          {pattern, DBRef{Path: "data/a/tenants/1.sqlite"}, false},
		"PathOutside":        {pattern, DBRef{Path: "other/single.db"}, false},
		"PathLinkedFile":     {pattern, DBRef{Path: "to-1.db"}, true},
		"PathLinkedDir":      {pattern, DBRef{Path: "links/a/tenants/1.db"}, true},
		"PathLinkedDirNew":   {pattern, DBRef{Path: "links/a/tenants/new.db"}, true},
		"PathLinkedPrefix":   {"links/*/tenants/*.db", DBRef{Path: "data/a/tenants/1.db"}, true},
		"PathHardLink":       {pattern, DBRef{Path: "hard.db"}, false}, // left unopened instead
		"PathHardLinkOther":  {pattern, DBRef{Path: "other/y.db"}, false},
		"Dir":                {pattern, dir("data/a/tenants", "*.db", false), true},
		"DirMissing":         {pattern, dir("data/z/tenants", "*.db", false), true},
		"DirOtherSuffix":     {pattern, dir("data/a/tenants", "*.sqlite", false), false},
		"DirAnySuffix":       {pattern, dir("data/a/tenants", "*", false), true},
		"DirAbove":           {pattern, dir("data/a", "*.db", false), false},
		"DirAboveRecursive":  {pattern, dir("data/a", "*.db", true), true},
		"DirRootRecursive":   {pattern, dir("/", "*.db", true), true},
		"DirRoot":            {pattern, dir("/", "*.db", false), false},
		"DirBelow":           {pattern, dir("data/b/tenants/deep", "*.db", true), false},
		"DirBelowDeep":       {"data/**/*.db", dir("data/b/tenants/deep", "*.db", false), true},
		"DirDeepZero":        {"data/**/*.db", dir("data", "*.db", false), true},
		"DirDeepBeyond":      {"data/**/tenants/*.db", dir("data/b/tenants/deep", "*.db", false), false},
		"DirDeepRecursive":   {"data/**/tenants/*.db", dir("data/b/tenants/deep", "*.db", true), true},
		"DirOutside":         {pattern, dir("other", "*.db", true), false},
		"DirLinked":          {pattern, dir("links/a/tenants", "*.db", false), true},
		"DirLinkedDirectory": {pattern, dir("other/tenants", "*.db", false), true},
		"DirLinkedPrefix":    {"links/*/tenants/*.db", dir("data", "*.db", true), true},
		"DirLinkedPrefixOne": {"links/*/tenants/*.db", dir("data", "*.db", false), false},
		"DirAboveLinked":     {"links/a/tenants/*.db", dir("data", "*.db", true), true},
		"DirNamed":           {"data/{project}/tenants/{tenant}.db", dir("data/q", "*.db", true), true},
		"DirClass":           {"data/[ab]/tenants/*.db", dir("data/c/tenants", "*.db", false), false},
		"DirHidden":          {pattern, dir("data/.a/tenants", "*.db", false), false},
		"DirWALName":         {pattern, dir("data/a-wal/tenants", "*.db", false), true},
		"StateFile":          {pattern, DBRef{Path: "data/.litestream-multi-db/state.db"}, true},
		"StateDirBelow":      {"data/*/tenants/*.sqlite", dir("data", "*.db", true), true},
		"StateDirNotBelow":   {"data/*/tenants/*.sqlite", dir("data", "*.db", false), false},
		"StateDirOtherGlob":  {"data/*/tenants/*.sqlite", dir("data", "*.sqlite3", true), false},
		"StateDirElsewhere":  {"data/*/tenants/*.sqlite", dir("data/a", "*.db", true), false},
	} {
		t.Run(name, func(t *testing.T) {
			config := &Config{DiscoveryPattern: filepath.Join(root, tt.pattern)}
			for _, path := range []*string{&tt.db.Path, &tt.db.Dir} {
				if *path != "" && *path != "/" {
					*path = filepath.Join(root, *path)
				}
			}
			err := config.CheckOverlap([]DBRef{{Path: "/nowhere/near.db"}, tt.db})
			if overlap := err != nil; overlap != tt.overlap {
				t.Fatalf("overlap=%v, want %v: %v", overlap, tt.overlap, err)
			}
		})
	}

	if err := (*Config)(nil).CheckOverlap([]DBRef{{Path: "/a.db"}}); err != nil {
		t.Fatal(err)
	}
}
