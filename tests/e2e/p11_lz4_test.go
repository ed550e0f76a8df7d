package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Point 11: what is in the target needs nothing of ours to be read.
func Test11ObjectIsPlainLZ4(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	o := newOne(t)
	o.target = s.dir()
	o.c.target = s.target(s.url())
	for i, setup := range [][]string{{"PRAGMA page_size=1024"}, {"PRAGMA journal_mode=WAL"}, {"PRAGMA page_size=65536"}} {
		name := fmt.Sprintf("db%d", i)
		p := o.make(name, setup...)
		fill(t, p, 400)
		must(t, os.Chmod(p, 0o640))
		if os.Geteuid() == 0 {
			must(t, os.Chown(p, 1234, 4321))
		}
	}
	from := time.Now()
	once(t, o.c)
	until := time.Now()
	for i := range 3 {
		name := fmt.Sprintf("db%d", i)
		p := o.path(name)
		want := sqliteImage(t, p)
		obj := objects(t, o.target, o.key(name))
		if len(obj) != 1 {
			t.Fatalf("%d objects of %s", len(obj), name)
		}
		dir := t.TempDir()
		plain := filepath.Join(dir, "plain.db")
		run2(t, "lz4", "-d", "-q", obj[0], plain)
		if err := compareImage(want, plain); err != nil {
			t.Errorf("lz4 -d: %v", err)
		}
		if got := run2(t, "sqlite3", plain, "PRAGMA integrity_check; SELECT count(*) FROM t;"); got != "ok\n403\n" {
			t.Errorf("sqlite3 says %q", got)
		}
		python := filepath.Join(dir, "python.db")
		run2(t, "/usr/bin/python3", "-c", `
import lz4.frame, sys
data = open(sys.argv[1], "rb").read()
whole = lz4.frame.open(sys.argv[1]).read()
once, used = lz4.frame.decompress(data, return_bytes_read=True)
assert whole == once, "reader and decompress differ"
info = lz4.frame.get_frame_info(data)
assert info["content_size"] == len(once) and info["content_checksum"] and not info["block_linked"], info
open(sys.argv[2], "wb").write(once)
`, obj[0], python)
		if err := compareImage(want, python); err != nil {
			t.Errorf("lz4.frame: %v", err)
		}

		// The trailer, field by field.
		raw := must1[[]byte](t)(os.ReadFile(obj[0]))
		_, line, tr, err := splitObject(raw)
		must(t, err)
		var m map[string]json.RawMessage
		must(t, json.Unmarshal(line, &m))
		var keys []string
		for k := range m {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		if got, want := fmt.Sprint(keys), "[change_counter database_size format gid lz4_sha256 mode page_size path snapshot_time uid]"; got != want {
			t.Errorf("trailer has %s, want %s", got, want)
		}
		info := must1[os.FileInfo](t)(os.Stat(p))
		st := info.Sys().(*syscall.Stat_t)
		if tr.Format != 1 || tr.Path != p || tr.DatabaseSize != int64(len(want)) || tr.PageSize != info64([]int64{1024, 4096, 65536}, i) ||
			tr.ChangeCounter != int64(binary.BigEndian.Uint32(want[24:])) || tr.Mode != "0640" || tr.UID != int(st.Uid) || tr.GID != int(st.Gid) {
			t.Errorf("trailer %s", line)
		}
		at, err := time.Parse(time.RFC3339Nano, tr.SnapshotTime)
		if err != nil || !strings.HasSuffix(tr.SnapshotTime, "Z") || at.Before(from.Add(-time.Second)) || at.After(until) {
			t.Errorf("snapshot_time %q: %v; the cycle ran from %v to %v", tr.SnapshotTime, err, from, until)
		}
		// Without the suffix: a layout takes its 4 for the minute.
		nameTime, err := time.Parse("20060102T150405Z", strings.TrimSuffix(filepath.Base(obj[0]), ".db.lz4"))
		// An epoch may be the second after the present one (docs/formats.md).
		if err != nil || nameTime.After(until.Add(time.Second)) || until.Sub(nameTime) > time.Hour+time.Second {
			t.Errorf("object name %s: %v; snapshot time %s, the cycle ran from %v to %v", filepath.Base(obj[0]), err, tr.SnapshotTime, from, until)
		}

		// Restore gives the mode, and as root the owner, back.
		out := restore(t, o.c.write(t, 0), p)
		oi := must1[os.FileInfo](t)(os.Stat(out))
		ost := oi.Sys().(*syscall.Stat_t)
		if oi.Mode().Perm() != 0o640 || os.Geteuid() == 0 && (ost.Uid != 1234 || ost.Gid != 4321) {
			t.Errorf("restored with mode %v, owner %d:%d", oi.Mode(), ost.Uid, ost.Gid)
		}
	}
}

func info64(v []int64, i int) int64 { return v[i] }

// A damaged object is refused by restore, and nothing is replaced.
func Test11DamagedObject(t *testing.T) {
	t.Parallel()
	o := newOne(t)
	p := o.make("x")
	fill(t, p, 300)
	once(t, o.c)
	obj := objects(t, o.target, o.key("x"))[0]
	good := must1[[]byte](t)(os.ReadFile(obj))
	config := o.c.write(t, 0)
	must(t, os.Rename(p, p+".kept"))
	for name, damage := range map[string]func(b []byte) []byte{
		"a bit in the middle":       func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"a bit in the trailer":      func(b []byte) []byte { b[len(b)-80] ^= 1; return b },
		"a bit in the last byte":    func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"a bit in the first header": func(b []byte) []byte { b[4] ^= 0x40; return b },
		"cut by a byte":             func(b []byte) []byte { return b[:len(b)-1] },
		"cut in half":               func(b []byte) []byte { return b[:len(b)/2] },
		"empty":                     func(b []byte) []byte { return nil },
		"with a byte more":          func(b []byte) []byte { return append(b, 'x') },
		"twice":                     func(b []byte) []byte { return append(b, b...) },
	} {
		must(t, os.WriteFile(obj, damage(bytes.Clone(good)), 0o644))
		before := photo(t, filepath.Dir(p))
		r := litestream(t, []string{"restore", "-config", config, p})
		if r.code == 0 || r.stderr == "" {
			t.Errorf("%s: exit %d: %s", name, r.code, r.all())
		}
		after := photo(t, filepath.Dir(p))
		delete(before, filepath.Dir(p)) // the temporary file moves its mtime
		delete(after, filepath.Dir(p))
		samePhoto(t, before, after, nil)
		must(t, removeIfThere(p))
	}
	must(t, os.WriteFile(obj, good, 0o644))
	if r := litestream(t, []string{"restore", "-config", config, p}); r.code != 0 {
		t.Errorf("%s", r.all())
	}
	sameImage(t, p+".kept", p)
	if out, err := exec.Command("lz4", "-t", obj).CombinedOutput(); err != nil {
		t.Errorf("lz4 -t: %v: %s", err, out)
	}
}

func removeIfThere(p string) error {
	err := os.Remove(p)
	if os.IsNotExist(err) {
		return nil
	}
	return err
}

// The flags of restore PATH.
func Test11RestoreFlags(t *testing.T) {
	t.Parallel()
	o := newOne(t, "snapshot_window: 0s")
	p := o.make("x")
	once(t, o.c)
	config := o.c.write(t, 0)
	run := func(args ...string) result {
		return litestream(t, append([]string{"restore", "-config", config}, args...))
	}
	refused := func(what string, r result, say string) {
		t.Helper()
		if r.code != 1 || !strings.Contains(r.all(), say) {
			t.Errorf("%s: exit %d, want 1 and %q in: %s", what, r.code, say, r.all())
		}
	}
	before := photo(t, filepath.Dir(p))
	refused("the database is there", run(p), "-force")
	if r := run("-if-db-not-exists", p); r.code != 0 {
		t.Errorf("-if-db-not-exists: exit %d: %s", r.code, r.all())
	}
	refused("-txid", run("-txid", "0000000000000001", p), "txid")
	refused("-f", run("-f", p), "-f")
	refused("no such backup", run(o.path("y")), "")
	if r := run("-if-replica-exists", o.path("y")); r.code != 0 {
		t.Errorf("-if-replica-exists: exit %d: %s", r.code, r.all())
	}
	refused("too early", run("-o", t.TempDir()+"/x", "-timestamp", "2001-01-01T00:00:00Z", p), "")
	refused("bad integrity check", run("-integrity-check", "maybe", p), "integrity-check")
	out := filepath.Join(t.TempDir(), "x.db")
	if r := run("-dry-run", "-o", out, p); r.code != 0 || !strings.Contains(r.stdout, p) || exists(out) {
		t.Errorf("-dry-run: exit %d: %s", r.code, r.all())
	}
	if r := run("-dry-run", "-json", "-o", out, p); r.code != 0 || !json.Valid([]byte(r.stdout)) || exists(out) {
		t.Errorf("-dry-run -json: exit %d: %s", r.code, r.all())
	}
	samePhoto(t, before, photo(t, filepath.Dir(p)), nil)
	r := run("-json", "-integrity-check", "full", "-o", out, p)
	var m map[string]any
	if r.code != 0 || json.Unmarshal([]byte(r.stdout), &m) != nil || m["db_path"] != out {
		t.Errorf("-json: exit %d: %s", r.code, r.all())
	}
	sameImage(t, p, out)

	// -force over another state, with sidecars; refused while it is in use.
	want := sqliteImage(t, p)
	build(t, p, "UPDATE t SET v='changed since'")
	w := newWriter(t)
	w.open(p, "WAL")
	w.exec(p, "BEGIN IMMEDIATE; INSERT INTO t(v) VALUES('open')")
	in := photo(t, filepath.Dir(p))
	refused("-force over a database in use", run("-force", p), "")
	for k, v := range in {
		if got := photo(t, filepath.Dir(p))[k]; got != v && k != filepath.Dir(p) {
			t.Errorf("%s changed from %s to %s", k, v, got)
		}
	}
	w.kill()
	if !exists(p + "-wal") {
		t.Error("no -wal left by the killed writer: the test shows nothing")
	}
	if r := run("-force", p); r.code != 0 {
		t.Errorf("-force: exit %d: %s", r.code, r.all())
	}
	if err := compareImage(want, p); err != nil {
		t.Error(err)
	}
	entries := must1[[]os.DirEntry](t)(os.ReadDir(filepath.Dir(p)))
	if len(entries) != 1 {
		t.Errorf("after -force there is more than the database: %v", entries)
	}
	// A stale -wal or -journal without the database.
	for _, suffix := range []string{"-wal", "-journal"} {
		must(t, os.Remove(p))
		must(t, os.WriteFile(p+suffix, []byte("stale"), 0o644))
		refused("stale "+suffix, run(p), suffix)
		if r := run("-force", p); r.code != 0 || exists(p+suffix) {
			t.Errorf("-force over a stale %s: exit %d: %s", suffix, r.code, r.all())
		}
		if err := compareImage(want, p); err != nil {
			t.Error(err)
		}
	}
	// A link at the output is not followed.
	precious := filepath.Join(t.TempDir(), "precious")
	must(t, os.WriteFile(precious, []byte("precious"), 0o644))
	link := filepath.Join(t.TempDir(), "link.db")
	must(t, os.Symlink(precious, link))
	run("-force", "-o", link, p)
	if b := must1[[]byte](t)(os.ReadFile(precious)); string(b) != "precious" {
		t.Error("restore wrote through a link")
	}
}

// The machine is lost: configuration and target are all there is.
func Test11RestoreOnBareMachine(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	for _, target := range []string{fileTarget(t.TempDir()), s.target(s.url())} {
		root := filepath.Join(t.TempDir(), "data")
		paths := makeFleet(t, root, 5)
		c := settings{pattern: seedPattern(root), target: target}
		once(t, c)
		want := sqliteImage(t, paths[3])
		must(t, os.RemoveAll(root))
		config := c.write(t, 0)
		out := filepath.Join(t.TempDir(), "new/dir/x.db")
		restoreTo(t, config, paths[3], out)
		if err := compareImage(want, out); err != nil {
			t.Error(err)
		}
		if exists(root) {
			t.Errorf("restore -o elsewhere made %s", root)
		}
		if r := litestream(t, []string{"restore", "-config", config, paths[3]}); r.code != 0 {
			t.Errorf("restore in place: exit %d: %s", r.code, r.all())
		} else if err := compareImage(want, paths[3]); err != nil {
			t.Error(err)
		}
	}
}

// What replicate refuses must not stand in the way of a restore.
func Test11RestoreDespiteOverlap(t *testing.T) {
	t.Parallel()
	o := newOne(t)
	p := o.make("x")
	once(t, o.c)
	c := o.c
	c.top = []string{"dbs:", "  - path: " + p, "    replica:", "      path: " + t.TempDir()}
	r := tryRestore(t, c.write(t, 0), p, filepath.Join(t.TempDir(), "x.db"))
	t.Logf("exit %d: %s", r.code, r.all())
	app := filepath.Join(t.TempDir(), "app.db")
	simple(t, app)
	replica := t.TempDir()
	c.top = []string{"dbs:", "  - path: " + app, "    replica:", "      path: " + replica}
	once(t, c)
	must(t, os.Link(app, o.path("linked")))
	config := c.write(t, 0)
	for _, path := range []string{p, app} {
		if r := tryRestore(t, config, path, filepath.Join(t.TempDir(), "x.db")); r.code != 0 {
			t.Errorf("restore %s: exit %d: %s", path, r.code, r.all())
		}
	}
}
