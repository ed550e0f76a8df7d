package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Point 6: a bad configuration gives one line that names key, value and remedy,
// exit 1, and nothing is touched.
func Test06BadConfiguration(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	root := filepath.Join(base, "data")
	paths := makeFleet(t, root, 4)
	target := filepath.Join(base, "target")
	must(t, os.Mkdir(target, 0o755))
	inside := filepath.Join(root, "p0/databases/d0/branches/main/tenants")
	must(t, os.WriteFile(filepath.Join(base, "plain-file"), []byte("x"), 0o644))
	linked := filepath.Join(base, "linked")
	must(t, os.Symlink(root, linked))
	linkedDB := filepath.Join(base, "linked.db")
	must(t, os.Symlink(paths[0], linkedDB))
	pattern := seedPattern(root)
	file := fileTarget(target)
	s3 := strings.Join([]string{"s3:", "  region: us-east-1", "  bucket: bkt", `  path: "` + seedTemplate + `"`, "  endpoint: http://127.0.0.1:1"}, "\n")

	for _, tt := range []struct {
		name string
		c    settings
		raw  string   // the whole file instead
		want []string // key, value, remedy: each a part of the line
	}{
		{"relative pattern", settings{pattern: "data/*/databases/*.db", target: file}, "", []string{"discovery_pattern", "data/*/databases/*.db", "absolute"}},
		{"no wildcard", settings{pattern: root + "/x.db", target: file}, "", []string{"discovery_pattern", root + "/x.db", "wildcard"}},
		{"unbound variable", settings{pattern: root + "/*/*.db", target: fileTargetPath(target, "{{a}}/{{b}}/{{c}}")}, "", []string{"path", "c"}},
		{"unused wildcard", settings{pattern: root + "/*/*/*.db", target: fileTargetPath(target, "{{a}}/{{b}}")}, "", []string{"path", "{{a}}/{{b}}"}},
		{"unused named wildcard", settings{pattern: root + "/{project}/{tenant}.db", target: fileTargetPath(target, "{{tenant}}")}, "", []string{"path", "project"}},
		{"name not in the pattern", settings{pattern: root + "/{project}/{tenant}.db", target: fileTargetPath(target, "{{project}}/{{tennant}}")}, "", []string{"path", "tennant"}},
		{"two variables in one component", settings{pattern: root + "/*/*.db", target: fileTargetPath(target, "{{a}}-{{b}}")}, "", []string{"path", "{{a}}-{{b}}"}},
		{"variable twice", settings{pattern: root + "/*/*.db", target: fileTargetPath(target, "{{a}}/{{b}}/{{a}}/{{c}}")}, "", []string{"path"}},
		{"two **", settings{pattern: root + "/**/x/**/*.db", target: fileTargetPath(target, "{{a}}/{{b}}/{{c}}")}, "", []string{"discovery_pattern", "**"}},
		{"unclosed bracket", settings{pattern: root + "/[ab/*.db", target: fileTargetPath(target, "{{a}}/{{b}}")}, "", []string{"discovery_pattern", "["}},
		{"unclosed name", settings{pattern: root + "/{ab/*.db", target: fileTargetPath(target, "{{a}}/{{b}}")}, "", []string{"discovery_pattern", "{"}},
		{"unclosed variable", settings{pattern: root + "/*.db", target: fileTargetPath(target, "{{a")}, "", []string{"path", "{{a"}},
		{"dots in the pattern", settings{pattern: root + "/../*/*.db", target: fileTargetPath(target, "{{a}}/{{b}}")}, "", []string{"discovery_pattern", ".."}},
		{"dots in the template", settings{pattern: root + "/*.db", target: fileTargetPath(target, "../{{a}}")}, "", []string{"path", "../{{a}}"}},
		{"unknown key", settings{pattern: pattern, target: file, keys: []string{"sync_intervall: 5s"}}, "", []string{"sync_intervall", "sync_interval"}},
		{"unknown key of s3", settings{pattern: pattern, target: s3 + "\n  max_concurent_uploads: 5"}, "", []string{"max_concurent_uploads", "max_concurrent_uploads"}},
		{"unknown key of file", settings{pattern: pattern, target: file + "\n  dir: /x"}, "", []string{"dir"}},
		{"key written twice", settings{pattern: pattern, target: file, interval: "5s", keys: []string{"sync-interval: 6s"}}, "", []string{"sync-interval", "sync_interval"}},
		{"both targets", settings{pattern: pattern, target: file + "\n" + s3}, "", []string{"s3", "file"}},
		{"no target", settings{pattern: pattern}, "", []string{"s3", "file"}},
		{"interval 0", settings{pattern: pattern, target: file, interval: "0s"}, "", []string{"sync_interval", "0s", "1s"}},
		{"interval below a second", settings{pattern: pattern, target: file, interval: "500ms"}, "", []string{"sync_interval", "500ms", "1s"}},
		{"interval that is none", settings{pattern: pattern, target: file, interval: "soon"}, "", []string{"sync_interval", "soon"}},
		{"negative window", settings{pattern: pattern, target: file, keys: []string{"snapshot_window: -1h"}}, "", []string{"snapshot_window", "-1h"}},
		{"negative retention", settings{pattern: pattern, target: file, keys: []string{"retention: -1h"}}, "", []string{"retention", "-1h"}},
		{"concurrency 0", settings{pattern: pattern, target: file + "\n  max_concurrent_uploads: 0"}, "", []string{"max_concurrent_uploads", "0", "1000"}},
		{"concurrency 5000", settings{pattern: pattern, target: s3 + "\n  max_concurrent_uploads: 5000"}, "", []string{"max_concurrent_uploads", "5000", "1000"}},
		{"bucket missing", settings{pattern: pattern, target: strings.Replace(s3, "  bucket: bkt\n", "", 1)}, "", []string{"bucket"}},
		{"path missing", settings{pattern: pattern, target: "file:\n  directory: " + target}, "", []string{"path"}},
		{"pattern missing", settings{}, "multi_db:\n  file:\n    directory: " + target + "\n    path: \"{{a}}\"\n", []string{"discovery_pattern"}},
		{"directory relative", settings{pattern: pattern, target: fileTarget("backup")}, "", []string{"directory", "backup", "absolute"}},
		{"directory missing", settings{pattern: pattern, target: `file:` + "\n" + `  path: "` + seedTemplate + `"`}, "", []string{"directory"}},
		{"endpoint without scheme", settings{pattern: pattern, target: strings.Replace(s3, "http://127.0.0.1:1", "127.0.0.1:1", 1)}, "", []string{"endpoint", "127.0.0.1:1", "http"}},
		{"memory limit too small", settings{pattern: pattern, target: file, keys: []string{"memory_limit: 1MB"}}, "", []string{"memory_limit", "1MB", "16"}},
		{"memory limit that is none", settings{pattern: pattern, target: file, keys: []string{"memory_limit: lots"}}, "", []string{"memory_limit", "lots"}},
		{"unknown format", settings{pattern: pattern, target: file, keys: []string{"format: zip"}}, "", []string{"format", "zip", "lz4"}},
		{"state_dir that cannot be made", settings{pattern: pattern, target: file, keys: []string{"state_dir: " + base + "/plain-file/state"}}, "", []string{base + "/plain-file/state"}},
		{"state_dir relative", settings{pattern: pattern, target: file, keys: []string{"state_dir: state"}}, "", []string{"state_dir", "state", "absolute"}},
		{"state_dir where the pattern looks", settings{pattern: root + "/**/*.db", target: fileTargetPath(target, "{{a}}/{{b}}"), keys: []string{"state_dir: " + root + "/state"}}, "", []string{"state_dir", root + "/state"}},
		{"target where the pattern looks", settings{pattern: root + "/**/*", target: fileTargetPath(root+"/backup", "{{a}}/{{b}}")}, "", []string{"directory", root + "/backup"}},
		{"target in a tenants directory through a link", settings{pattern: root + "/**/*", target: fileTargetPath(linked+"/p0", "{{a}}/{{b}}")}, "", []string{"directory", linked + "/p0"}},
		{"dbs path", settings{pattern: pattern, target: file, top: []string{"dbs:", "  - path: " + paths[0], "    replica:", "      path: " + base + "/r"}}, "", []string{paths[0], "discovery_pattern"}},
		{"dbs path through a link to a directory", settings{pattern: pattern, target: file, top: []string{"dbs:", "  - path: " + strings.Replace(paths[0], root, linked, 1), "    replica:", "      path: " + base + "/r"}}, "", []string{strings.Replace(paths[0], root, linked, 1)}},
		{"dbs path that is a link", settings{pattern: pattern, target: file, top: []string{"dbs:", "  - path: " + linkedDB, "    replica:", "      path: " + base + "/r"}}, "", []string{linkedDB}},
		{"dbs dir", settings{pattern: pattern, target: file, top: []string{"dbs:", "  - dir: " + inside, "    pattern: '*.db'", "    replica:", "      path: " + base + "/r"}}, "", []string{inside}},
		{"dbs dir above, recursive", settings{pattern: pattern, target: file, top: []string{"dbs:", "  - dir: " + root, "    pattern: '*.db'", "    recursive: true", "    replica:", "      path: " + base + "/r"}}, "", []string{root}},
		{"multi_db as a list", settings{}, "multi_db:\n  - discovery_pattern: " + pattern + "\n", []string{"multi_db"}},
		{"multi_db as a string", settings{}, "multi_db: yes please\n", []string{"multi_db"}},
		{"near miss: multi_dbs", settings{}, "multi_dbs:\n  discovery_pattern: " + pattern + "\n", []string{"multi_dbs", "multi_db"}},
		{"near miss: multidb", settings{}, "multidb:\n  discovery_pattern: " + pattern + "\n", []string{"multidb", "multi_db"}},
		{"a list as the bucket", settings{pattern: pattern, target: strings.Replace(s3, "bucket: bkt", "bucket: [bkt]", 1)}, "", []string{"bucket"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := tt.raw
			if text == "" {
				text = tt.c.text(freePort(t))
			}
			config := filepath.Join(base, "litestream.yml")
			must(t, os.WriteFile(config, []byte(text), 0o644))
			before := photo(t, base)
			for _, args := range [][]string{{"-once"}, {}} {
				r := litestream(t, append(append([]string{"replicate"}, args...), "-config", config))
				line := strings.TrimSuffix(r.stderr, "\n")
				if r.code != 1 || line == "" || strings.Contains(line, "\n") {
					t.Fatalf("replicate %v: exit %d, want 1 and one line on stderr\nstderr: %s\nstdout: %s\nconfig:\n%s", args, r.code, r.stderr, r.stdout, text)
				}
				for _, w := range tt.want {
					if !strings.Contains(line, w) {
						t.Errorf("the line does not say %q: %s", w, line)
					}
				}
				samePhoto(t, before, photo(t, base), nil)
			}
		})
	}
	if n := len(paths); n == 0 {
		t.Fatal(n)
	}
}

// A disabled section may be as broken as it likes; litestream is then stock.
func Test06DisabledIsIgnored(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	db := filepath.Join(base, "app.db")
	simple(t, db)
	config := filepath.Join(base, "litestream.yml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `dbs:
  - path: %s
    replica:
      path: %s/replica
multi_db:
  enabled: false
  discovery_pattern: not/absolute
  sync_intervall: never
  s3: [1, 2]
`, db, base), 0o644))
	r := litestream(t, []string{"replicate", "-once", "-config", config})
	if r.code != 0 || strings.Contains(r.all(), "multi-db") || strings.Contains(r.all(), "multi_db") {
		t.Errorf("exit %d\n%s", r.code, r.all())
	}
	if !exists(filepath.Join(base, "replica")) {
		t.Error("dbs: was not replicated")
	}
	if exists(filepath.Join(base, ".litestream-multi-db")) {
		t.Error("a state directory was made")
	}
}
