package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sameTest is one database with two states: what is in the target, and what is on
// disk now.
type sameTest struct {
	*one
	path   string
	config string
	backup []byte // in the target
}

func newSame(t *testing.T, setup ...string) *sameTest {
	t.Helper()
	s := &sameTest{one: newOne(t)}
	s.path = s.make("x", setup...)
	fill(t, s.path, 200)
	must(t, os.Chmod(s.path, 0o620))
	if os.Geteuid() == 0 {
		must(t, os.Chown(s.path, 1234, 4321))
	}
	once(t, s.c)
	s.backup = sqliteImage(t, s.path)
	s.config = s.c.write(t, 0)
	return s
}

// both runs one restore of the path by each command, at the database's own place.
func (s *sameTest) both(args ...string) map[string]result {
	return map[string]result{
		"restore":          s.single(args...),
		"multi-db restore": s.fleet(args...),
	}
}

func (s *sameTest) single(args ...string) result {
	return litestream(s.t, append(append([]string{"restore", "-config", s.config}, args...), s.path))
}

func (s *sameTest) fleet(args ...string) result {
	return litestream(s.t, append([]string{"multi-db", "restore", "-config", s.config, "-match", s.path}, args...))
}

func (s *sameTest) runners() map[string]func(args ...string) result {
	return map[string]func(args ...string) result{"restore": s.single, "multi-db restore": s.fleet}
}

// files is every file beside the database, hidden ones included, by name.
func (s *sameTest) files() map[string]string {
	s.t.Helper()
	out := map[string]string{}
	dir := filepath.Dir(s.path)
	for p, what := range photo(s.t, dir) {
		if p != dir { // the temporary file moves its mtime
			out[p] = what
		}
	}
	return out
}

// Point 6: one database by either command: the same bytes, mode and owner, and the
// same meaning of upstream's flags.
func Test26SameRestore(t *testing.T) {
	t.Parallel()
	s := newSame(t, "PRAGMA page_size=1024")
	out := t.TempDir()
	a := filepath.Join(out, "single.db")
	restoreTo(t, s.config, s.path, a)
	m := multiDB(t, s.config, "restore", "-match", s.path, "-output-dir", out).good(t)
	b := out + strings.TrimPrefix(s.path, s.root)
	if len(m.rows) != 1 || m.rows[0].Output != b {
		t.Fatalf("%+v", m.rows)
	}
	for _, p := range []string{a, b} {
		if err := compareImage(s.backup, p); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		info := must1[os.FileInfo](t)(os.Stat(p))
		st := info.Sys().(*syscall.Stat_t)
		if info.Mode() != 0o620 || os.Geteuid() == 0 && (st.Uid != 1234 || st.Gid != 4321) {
			t.Errorf("%s: mode %v, owner %d:%d", p, info.Mode(), st.Uid, st.Gid)
		}
	}

	build(t, s.path, "UPDATE t SET v='changed since'")
	current := s.files()
	same := func(what string) {
		t.Helper()
		samePhoto(t, current, s.files(), nil)
		if t.Failed() {
			t.Fatalf("after %s", what)
		}
	}
	for name, r := range s.both() {
		if r.code != 1 || !strings.Contains(r.all(), "-force") {
			t.Errorf("%s over an existing one: exit %d: %s", name, r.code, r.all())
		}
	}
	same("restore over an existing one")
	for name, r := range s.both("-if-db-not-exists") {
		if r.code != 0 {
			t.Errorf("%s -if-db-not-exists: exit %d: %s", name, r.code, r.all())
		}
	}
	same("-if-db-not-exists")
	for name, r := range s.both("-dry-run", "-force") {
		if r.code != 0 || !strings.Contains(r.stdout, s.path) {
			t.Errorf("%s -dry-run: exit %d: %s", name, r.code, r.all())
		}
	}
	for name, r := range s.both("-dry-run", "-force", "-json") {
		for d := json.NewDecoder(strings.NewReader(r.stdout)); ; {
			var v map[string]any
			if err := d.Decode(&v); err == io.EOF {
				break
			} else if r.code != 0 || err != nil {
				t.Fatalf("%s -dry-run -json: exit %d, %v: %s", name, r.code, err, r.all())
			}
		}
	}
	same("-dry-run")
	for name, r := range s.both("-force", "-timestamp", "2001-01-01T00:00:00Z") {
		if r.code != 1 {
			t.Errorf("%s before the first: exit %d: %s", name, r.code, r.all())
		}
	}
	for name, r := range s.both("-force", "-integrity-check", "maybe") {
		if r.code != 1 || !strings.Contains(r.stderr, "integrity-check") {
			t.Errorf("%s -integrity-check maybe: exit %d: %s", name, r.code, r.all())
		}
	}
	same("a restore that cannot be")

	// -force with a live -wal and a -shm of a process that has died.
	for name, restore := range s.runners() {
		w := newWriter(t)
		w.open(s.path, "WAL", "PRAGMA wal_autocheckpoint=0")
		w.exec(s.path, "INSERT INTO t(v) VALUES('in the wal')")
		w.kill()
		if !exists(s.path + "-wal") {
			t.Fatal("no -wal: the test shows nothing")
		}
		if r := restore("-force", "-integrity-check", "full"); r.code != 0 {
			t.Fatalf("%s -force: exit %d: %s", name, r.code, r.all())
		}
		if err := compareImage(s.backup, s.path); err != nil {
			t.Errorf("%s -force: %v", name, err)
		}
		if files := s.files(); len(files) != 1 {
			t.Errorf("%s -force left %v", name, files)
		}
		for _, suffix := range []string{"-wal", "-journal"} {
			must(t, os.Remove(s.path))
			must(t, os.WriteFile(s.path+suffix, []byte("stale"), 0o644))
			if r := restore(); r.code != 1 || !strings.Contains(r.all(), suffix) || exists(s.path) {
				t.Errorf("%s beside a stale %s: exit %d: %s", name, suffix, r.code, r.all())
			}
			if r := restore("-force"); r.code != 0 || exists(s.path+suffix) {
				t.Errorf("%s -force beside a stale %s: exit %d: %s", name, suffix, r.code, r.all())
			}
			if err := compareImage(s.backup, s.path); err != nil {
				t.Errorf("%s -force beside a stale %s: %v", name, suffix, err)
			}
		}
		must(t, os.Remove(s.path))
		if r := restore("-if-db-not-exists"); r.code != 0 {
			t.Errorf("%s -if-db-not-exists, and it does not: exit %d: %s", name, r.code, r.all())
		}
		if err := compareImage(s.backup, s.path); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A damaged database is backed up as it is; -integrity-check tells.
func Test26IntegrityCheck(t *testing.T) {
	t.Parallel()
	s := newSame(t)
	b := must1[[]byte](t)(os.ReadFile(s.path))
	copy(b[len(b)-4096:], bytes.Repeat([]byte{0xaa}, 4096)) // a page of the table
	must(t, os.WriteFile(s.path, b, 0o600))
	if integrity(s.path) == nil {
		t.Fatal("the database is whole: the test shows nothing")
	}
	once(t, s.c)
	must(t, os.Remove(s.path))
	for name, restore := range s.runners() {
		for _, mode := range []string{"quick", "full"} {
			if r := restore("-integrity-check", mode); r.code != 1 || !strings.Contains(r.all(), "integrity") && !strings.Contains(r.all(), "corrupt") {
				t.Errorf("%s -integrity-check %s: exit %d: %s", name, mode, r.code, r.all())
			}
			if files := s.files(); len(files) != 0 {
				t.Errorf("%s -integrity-check %s left %v", name, mode, files)
			}
		}
		if r := restore("-integrity-check", "none"); r.code != 0 {
			t.Errorf("%s -integrity-check none: exit %d: %s", name, r.code, r.all())
		}
		must(t, os.Remove(s.path))
	}
	a := multiDB(t, s.config, "verify", "-all")
	if a.code != 1 || a.num("failed") != 1 {
		t.Errorf("verify: exit %d, %v", a.code, a.summary)
	}
	if a := multiDB(t, s.config, "verify", "-all", "-integrity-check", "none"); a.num("failed") > 1 {
		t.Errorf("verify -integrity-check none: %v %+v", a.summary, a.rows)
	}
}

// -force does not take a database away from a process that has it open.
func Test26ForceInUse(t *testing.T) {
	t.Parallel()
	for _, in := range []struct{ name, mode, sql string }{
		{"open in WAL mode", "WAL", "SELECT count(*) FROM t"},
		{"a transaction in WAL mode", "WAL", "BEGIN IMMEDIATE; INSERT INTO t(v) VALUES('x')"},
		{"a transaction that writes", "DELETE", "BEGIN IMMEDIATE; INSERT INTO t(v) VALUES('x')"},
		{"a transaction that spilled", "DELETE", "PRAGMA cache_size=5; BEGIN; UPDATE t SET v=hex(randomblob(300))"},
		{"a transaction that reads", "DELETE", "BEGIN; SELECT count(*) FROM t"},
		{"exclusive mode", "DELETE", "PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT"},
	} {
		t.Run(in.name, func(t *testing.T) {
			t.Parallel()
			s := newSame(t)
			w := newWriter(t)
			w.open(s.path, in.mode)
			if strings.HasPrefix(in.sql, "SELECT") || strings.HasPrefix(in.sql, "BEGIN; SELECT") {
				if rest, ok := strings.CutPrefix(in.sql, "BEGIN; "); ok {
					w.exec(s.path, "BEGIN")
					w.query(s.path, rest)
				} else {
					w.query(s.path, in.sql)
				}
			} else {
				w.exec(s.path, in.sql)
			}
			before := s.files()
			for name, r := range s.both("-force") {
				if r.code != 1 {
					t.Errorf("%s -force: exit %d: %s", name, r.code, r.all())
				}
				samePhoto(t, before, s.files(), nil)
			}
			// Once it is free, it is replaced.
			w.kill()
			for name, r := range s.both("-force") {
				if r.code != 0 {
					t.Errorf("%s -force when it is free: exit %d: %s", name, r.code, r.all())
				}
			}
			if err := compareImage(s.backup, s.path); err != nil {
				t.Error(err)
			}
		})
	}
}

// -force, killed at any moment: the old database with its -wal, or the new one, or
// none for the next restore to bring; never a mixture.
func Test26ForceKilled(t *testing.T) {
	t.Parallel()
	for name, fleet := range map[string]bool{"restore": false, "multi-db restore": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSame(t)
			fill(t, s.path, 3000) // the old state is larger than the new one
			w := newWriter(t)
			w.open(s.path, "WAL", "PRAGMA wal_autocheckpoint=0")
			w.exec(s.path, "UPDATE t SET v='changed in the wal' WHERE id%2=0")
			w.kill()
			old := sqliteImage(t, s.path)
			saved := t.TempDir()
			for _, suffix := range []string{"", "-wal", "-shm"} {
				must(t, os.WriteFile(filepath.Join(saved, "x"+suffix), must1[[]byte](t)(os.ReadFile(s.path+suffix)), 0o600))
			}
			args := append([]string{"restore", "-config", s.config, "-force"}, s.path)
			if fleet {
				args = []string{"multi-db", "restore", "-config", s.config, "-force", "-match", s.path}
			}
			whole := func() time.Duration {
				start := time.Now()
				if r := litestream(t, args); r.code != 0 {
					t.Fatalf("%v: exit %d: %s", args, r.code, r.all())
				}
				if err := compareImage(s.backup, s.path); err != nil {
					t.Fatal(err)
				}
				if files := s.files(); len(files) != 1 {
					t.Fatalf("%v left %v", args, files)
				}
				return time.Since(start)
			}
			took := min(whole(), whole(), whole())
			var none, kept, replaced, ended int
			for i := range envInt("KILLS", 40) {
				for p := range s.files() {
					must(t, os.Remove(p))
				}
				for _, suffix := range []string{"", "-wal", "-shm"} {
					must(t, os.WriteFile(s.path+suffix, must1[[]byte](t)(os.ReadFile(filepath.Join(saved, "x"+suffix))), 0o600))
				}
				cmd := command(args)
				must(t, startCommand(cmd))
				// Mostly towards the end, where things happen.
				pause := took/3 + time.Duration(rand.Int64N(int64(took)*2/3))
				if i%3 != 0 { // as soon as something has appeared beside it
					poll2(func() bool { entries, _ := os.ReadDir(filepath.Dir(s.path)); return len(entries) != 3 }, took)
					pause = time.Duration(rand.Int64N(int64(4 * time.Millisecond)))
				}
				time.Sleep(pause)
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				if cmd.ProcessState.ExitCode() == 0 {
					ended++
				}
				switch {
				case !exists(s.path):
					none++
				default:
					img := sqliteImage(t, s.path)
					switch {
					case bytes.Equal(img, old):
						kept++
					case bytes.Equal(img, s.backup):
						replaced++
						if exists(s.path + "-wal") {
							t.Errorf("killed after %v: the new database beside the old -wal", pause)
						}
					default:
						t.Fatalf("killed after %v: neither the old nor the new database: %v", pause, s.files())
					}
				}
				whole()
			}
			t.Logf("took %v; old %d, none %d, new %d (to the end %d)", took, kept, none, replaced, ended)
			if kept == 0 || replaced == 0 {
				t.Errorf("old %d, new %d times: the test shows nothing", kept, replaced)
			}
		})
	}
}

// poll2 polls without a pause.
func poll2(cond func() bool, limit time.Duration) {
	for deadline := time.Now().Add(limit); !cond() && time.Now().Before(deadline); {
	}
}

// Many at once with -force: some in use, some with a stale -wal, some gone.
func Test26ForceFleet(t *testing.T) {
	t.Parallel()
	root, target := filepath.Join(t.TempDir(), "data"), t.TempDir()
	paths := makeFleet(t, root, 60)
	c := settings{pattern: seedPattern(root), target: fileTarget(target), keys: []string{"state_dir: " + t.TempDir()}}
	once(t, c)
	want := map[string]lost{}
	for _, p := range paths {
		want[p] = remember(t, p)
	}
	w, dead := newWriter(t), newWriter(t)
	inUse := map[string]bool{}
	for i, p := range paths {
		switch i % 6 {
		case 0:
			w.open(p, "WAL")
			w.exec(p, "INSERT INTO t(tag) VALUES('open')")
			inUse[p] = true
		case 1:
			dead.open(p, "WAL", "PRAGMA wal_autocheckpoint=0")
			dead.exec(p, "INSERT INTO t(tag) VALUES('dead')")
		case 2:
			must(t, os.Remove(p))
		case 3:
			change(t, p)
		}
	}
	dead.kill()
	before := photo(t, root)
	a := multiDB(t, c.write(t, 0), "restore", "-force")
	if a.code != 1 || a.num("failed") != 10 || a.num("restored") != 50 || !strings.Contains(a.stderr, "10 of 60") {
		t.Errorf("exit %d, %v\n%s", a.code, a.summary, a.stderr)
	}
	after := photo(t, root)
	for _, p := range paths {
		if inUse[p] {
			for _, suffix := range []string{"", "-wal", "-shm"} {
				if before[p+suffix] != after[p+suffix] {
					t.Errorf("%q is in use and was touched", p+suffix)
				}
			}
			if a.row(p).Status != "failed" || a.row(p).Error == "" {
				t.Errorf("%+v", a.row(p))
			}
			w.exec(p, "INSERT INTO t(tag) VALUES('still open')")
		} else if err := want[p].isBack(p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	w.quit()
	a = multiDB(t, c.write(t, 0), "restore", "-force").good(t)
	allBack(t, root, want)
	if got := fmt.Sprint(len(a.by("restored"))); got != "60" {
		t.Errorf("%s restored", got)
	}
}
