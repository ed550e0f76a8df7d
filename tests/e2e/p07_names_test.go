package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Point 7: names of every kind are backed up and restored to the same name, or
// refused and named; what is no regular file is never followed and never blocks.
func Test07Names(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	dir := t.TempDir()
	for _, kind := range []string{"file", "s3"} {
		t.Run(kind, func(t *testing.T) { names(t, kind, s, filepath.Join(dir, kind)) })
	}
}

func names(t *testing.T, kind string, s *s3server, root string) {
	tenants := filepath.Join(root, "p/databases/d/branches/b/tenants")
	must(t, os.MkdirAll(tenants, 0o755))
	tpls := must1[[]template](t)(templates())
	n := 0
	put := func(path string) {
		t.Helper()
		n++
		must(t, os.WriteFile(path, tagged(tpls[n%len(tpls)], fmt.Sprint("name ", n)), 0o644))
	}
	good := []string{
		"plain", "with space", " leading and trailing ", "it's", `say "hi"`, "new\nline", "tab\there", "cr\rhere", "bell\x07", "del\x7f",
		"hash#", "ques?tion", "amp&ersand", "plus+plus", "per%cent", "%41", "%2F", "equals=", "semi;colon", "comma,", "dollar$", "star*",
		"[brackets]", "{braces}", "{{tenant}}", `back\slash`, "pipe|", "<angle>", "colon:", "at@", "caret^", "back`tick", "tilde~", "excl!",
		"ünïcödé", "日本語", "emoji-🎉", "e\u0301-combining", "\u00e9-composed", "rtl-\u202e", "nonchar-\ufffe", "nonchar-\uffff", "bom-\ufeff",
		"invalid-\xff\xfe", "overlong-\xc0\xaf", "surrogate-\xed\xa0\x80", "cut-\xe2\x82", "..", ".x"[1:], "a..b", "-dash", "--", "CON", "nul",
		"UPPER", "upper", strings.Repeat("l", 252), "a.db", "x.db-wal", "x-journal",
	}
	for _, name := range good {
		if name == ".." { // "...db": a leading dot is hidden from the pattern
			continue
		}
		put(filepath.Join(tenants, name+".db"))
	}
	var paths []string
	for _, name := range good {
		if name != ".." {
			paths = append(paths, filepath.Join(tenants, name+".db"))
		}
	}
	// Directories with names of that kind, and `..` as what a wildcard caught.
	for _, d := range []string{"sp ace", "per%cent", "inv\xffalid", "new\nline", "q?&#"} {
		sub := filepath.Join(root, d, "databases", d, "branches", d, "tenants")
		must(t, os.MkdirAll(sub, 0o755))
		put(filepath.Join(sub, "t.db"))
		paths = append(paths, filepath.Join(sub, "t.db"))
	}
	// Refused and named: a component that escapes to more than 255 bytes, and a key
	// over 1,024 bytes.
	long := filepath.Join(tenants, strings.Repeat("\xff", 100)+".db")
	put(long)
	l := strings.Repeat("k", 250)
	longDir := filepath.Join(root, l, "databases", l, "branches", l, "tenants")
	must(t, os.MkdirAll(longDir, 0o755))
	longKey := filepath.Join(longDir, l+".db")
	put(longKey)
	refused := []string{long, longKey}

	// Never looked at.
	put(filepath.Join(tenants, ".hidden.db"))
	put(filepath.Join(tenants, "...db"))
	must(t, os.MkdirAll(filepath.Join(root, ".hidden/databases/d/branches/b/tenants"), 0o755))
	put(filepath.Join(root, ".hidden/databases/d/branches/b/tenants/t.db"))
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.MkdirAll(outside+"/databases/d/branches/b/tenants", 0o755))
	put(outside + "/databases/d/branches/b/tenants/o.db")
	put(outside + "/o.db")
	must(t, os.Symlink(outside+"/o.db", filepath.Join(tenants, "link.db")))
	must(t, os.Symlink(filepath.Join(tenants, "plain.db"), filepath.Join(tenants, "link-inside.db")))
	must(t, os.Symlink(outside, filepath.Join(root, "linked-dir")))
	must(t, os.Symlink("/nowhere", filepath.Join(tenants, "dangling.db")))
	must(t, syscall.Mkfifo(filepath.Join(tenants, "fifo.db"), 0o644))
	must(t, os.MkdirAll(filepath.Join(tenants, "directory.db"), 0o755))
	must(t, os.WriteFile(filepath.Join(tenants, "alone.db-wal"), []byte("x"), 0o644))
	must(t, os.WriteFile(filepath.Join(tenants, "plain.txt"), []byte("x"), 0o644))
	if os.Geteuid() == 0 {
		_ = syscall.Mknod(filepath.Join(tenants, "device.db"), syscall.S_IFCHR|0o644, 1<<8|5) // /dev/zero
	}

	target := t.TempDir()
	c := settings{pattern: seedPattern(root), interval: "1s", target: fileTarget(target), keys: []string{"state_dir: " + t.TempDir()}}
	if kind == "s3" {
		c.target = s.target(s.url())
		target = s.dir()
	}
	before := photo(t, root)
	d := replicate(t, c)
	st := d.waitCycles(2, 30*time.Second)
	samePhoto(t, before, photo(t, root), nil)
	if st.Databases != len(paths)+len(refused) || st.DatabasesFailed != len(refused) || st.UploadsSuccess != len(paths) {
		t.Errorf("databases %d, databases_failed %d, uploads_success %d; want %d, %d, %d; failures %+v", st.Databases, st.DatabasesFailed, st.UploadsSuccess,
			len(paths)+len(refused), len(refused), len(paths), st.Failures)
	}
	for _, f := range st.Failures {
		if f.Stage != "key" {
			t.Errorf("failure %+v, want stage key", f)
		}
	}
	log := d.output()
	if !strings.Contains(log, l) || !strings.Contains(log, strings.Repeat("%FF", 100)) {
		t.Error("the refused databases are not named in the log")
	}
	if strings.Contains(log, "bell\x07") || strings.Contains(log, "new\nline") {
		t.Error("control bytes of a name are in the log")
	}
	d.stop()
	if n, _ := countObjects(t, target); n != len(paths) {
		t.Errorf("%d objects for %d databases", n, len(paths))
	}

	// Restored under the same name, in place: all are deleted, then brought back.
	want := map[string][]byte{}
	for _, p := range paths {
		want[p] = must1[[]byte](t)(os.ReadFile(p))
		must(t, os.Remove(p))
	}
	config := c.write(t, 0)
	for _, p := range paths {
		if r := litestream(t, []string{"restore", "-config", config, p}); r.code != 0 {
			t.Errorf("restore %q: exit %d: %s", p, r.code, r.all())
			continue
		}
		if err := compareImage(want[p], p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	for _, p := range []string{filepath.Join(tenants, "never-there.db"), filepath.Join(tenants, ".hidden.db2"), outside + "/o.db"} {
		if r := tryRestore(t, config, p, filepath.Join(t.TempDir(), "x")); r.code == 0 || r.stderr == "" {
			t.Errorf("restore of %q: exit %d: %s", p, r.code, r.all())
		}
	}
	if out := litestream(t, []string{"multi-db", "plan", "-json", "-config", config}); out.code != 0 && out.code != 1 {
		t.Errorf("plan: exit %d: %s", out.code, out.all())
	}
}

// {{hostname}}, named wildcards, literal text beside a variable, and **.
func Test07Templates(t *testing.T) {
	t.Parallel()
	host := must1[string](t)(os.Hostname())
	for _, tt := range []struct{ pattern, template, path, key string }{
		{"/{project}/*/{tenant}.sqlite", "{{hostname}}/{{other}}/t-{{tenant}}/{{project}}", "/p1/o1/t1.sqlite", host + "/o1/t-t1/p1"},
		{"/**/*.db", "all/{{dirs}}/{{name}}", "/a/b/c/x.db", "all/a/b/c/x"},
		{"/**/*.db", "all/{{dirs}}/{{name}}", "/x.db", "all/x"},
		{"/data-*/[a-c]?.db", "v/{{a}}/{{b}}.sqlite", "/data-7/b9.db", "v/7/b9.sqlite"},
		{"/*-*.db", "{{a}}", "/one-two.db", "one-two"},
	} {
		root, target := t.TempDir(), t.TempDir()
		simple(t, root+tt.path)
		c := settings{pattern: root + tt.pattern, target: fileTargetPath(target, tt.template), keys: []string{"state_dir: " + t.TempDir()}}
		once(t, c)
		if n := len(objects(t, target, tt.key)); n != 1 {
			all := run2(t, "find", target)
			t.Errorf("%s with %s: %d objects under %s; there is\n%s", tt.pattern, tt.template, n, tt.key, all)
			continue
		}
		sameImage(t, root+tt.path, restore(t, c.write(t, 0), root+tt.path))
	}
}
