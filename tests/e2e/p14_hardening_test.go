package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sums returns the objects of one database in a target, by name, as hashes.
func sums(t testing.TB, target, key string) map[string][32]byte {
	t.Helper()
	out := map[string][32]byte{}
	for _, p := range objects(t, target, key) {
		out[filepath.Base(p)] = sha256.Sum256(must1[[]byte](t)(os.ReadFile(p)))
	}
	return out
}

// ascending wants the snapshot times in the order of the names.
func ascending(t testing.TB, target, key string) {
	t.Helper()
	var last time.Time
	for _, p := range objects(t, target, key) {
		_, tr, err := decodeObject(must1[[]byte](t)(os.ReadFile(p)))
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		at := must1[time.Time](t)(time.Parse(time.RFC3339Nano, tr.SnapshotTime))
		if !at.After(last) {
			t.Errorf("%s: snapshot time %v, that of the name before is %v", filepath.Base(p), at, last)
		}
		last = at
	}
}

// A database that was deleted, forgotten and made anew inside one window: its old
// objects stay, and each state is restored for its time.
func Test14Recreated(t *testing.T) {
	t.Parallel()
	o := newOne(t, "state_dir: "+t.TempDir(), "snapshot_window: 1h")
	o.c.interval = "1s"
	o.make("stays")
	p := o.make("x")
	fill(t, p, 500)
	d := replicate(t, o.c)
	upload := func() {
		t.Helper()
		d.waitSynced(20 * time.Second)
		before := d.stats().UploadsSuccess
		fill(t, p, 5)
		d.wait(20*time.Second, "the change to be uploaded", func(s stats) bool { return s.UploadsSuccess > before && s.Unsynced == 0 })
		o.check("x")
	}
	upload()
	upload() // in the steady state: this one takes the place of the one before
	old := sums(t, o.target, o.key("x"))
	if len(old) < 2 {
		t.Fatalf("%d objects before the deletion: the test shows nothing", len(old))
	}
	want := sqliteImage(t, p)
	at := time.Now().UTC().Format(time.RFC3339Nano)
	must(t, os.Remove(p))
	st := d.wait(20*time.Second, "the database to be forgotten", func(s stats) bool { return s.DatabasesGone >= 1 })
	if st.Databases != 1 || st.DatabasesGone != 1 {
		t.Errorf("after the deletion: databases %d, databases_gone %d", st.Databases, st.DatabasesGone)
	}
	before := st.UploadsSuccess
	build(t, p, "PRAGMA user_version=7") // one page, no table
	d.wait(20*time.Second, "the new database to be uploaded", func(s stats) bool { return s.UploadsSuccess > before && s.Unsynced == 0 })
	d.waitCycles(1, 20*time.Second)

	now := sums(t, o.target, o.key("x"))
	for name, sum := range old {
		if now[name] != sum {
			t.Errorf("old object %s has gone or was overwritten", name)
		}
	}
	if len(now) != len(old)+1 {
		t.Errorf("%d objects before, %d after, want one more", len(old), len(now))
	}
	ascending(t, o.target, o.key("x"))
	config := o.c.write(t, 0)
	if err := compareImage(want, restore(t, config, p, "-timestamp", at)); err != nil {
		t.Errorf("restore at the time of the deletion: %v", err)
	}
	sameImage(t, p, restore(t, config, p))
	d.stop()
}

// No database at all looks like a disk that is not mounted: nothing is forgotten,
// and nothing is uploaded again when they are back.
func Test14EmptyFleetForgetsNothing(t *testing.T) {
	t.Parallel()
	base, target := t.TempDir(), t.TempDir()
	root, aside := filepath.Join(base, "data"), filepath.Join(base, "aside")
	var paths []string
	for i := range 12 {
		p := filepath.Join(root, "p/databases/d/branches/b/tenants", fmt.Sprintf("t%02d.db", i))
		simple(t, p)
		paths = append(paths, p)
	}
	tree := filepath.Join(root, "p")
	d := replicate(t, settings{pattern: seedPattern(root), interval: "1s", target: fileTarget(target), keys: []string{"state_dir: " + t.TempDir()}})
	d.waitSynced(20 * time.Second)
	first := d.waitCycles(1, 20*time.Second)
	if first.UploadsSuccess != len(paths) {
		t.Fatalf("uploads_success %d, want %d", first.UploadsSuccess, len(paths))
	}
	before := photo(t, target)
	must(t, os.Rename(tree, aside))
	st := d.waitCycles(5, 20*time.Second)
	if st.Databases != 0 || st.DatabasesGone != 0 {
		t.Errorf("all moved away: databases %d, databases_gone %d", st.Databases, st.DatabasesGone)
	}
	must(t, os.Rename(aside, tree))
	st = d.waitCycles(1, 20*time.Second)
	if st.Databases != len(paths) || st.DatabasesGone != 0 || st.Unsynced != 0 || st.UploadsSuccess != first.UploadsSuccess {
		t.Errorf("all back: databases %d, databases_gone %d, unsynced %d, uploads_success %d (before: %d)",
			st.Databases, st.DatabasesGone, st.Unsynced, st.UploadsSuccess, first.UploadsSuccess)
	}
	samePhoto(t, before, photo(t, target), nil)

	// What changes while it is away is uploaded, and that alone.
	must(t, os.Rename(tree, aside))
	d.wait(20*time.Second, "no database", func(s stats) bool { return s.Databases == 0 })
	build(t, strings.Replace(paths[3], tree, aside, 1), "UPDATE t SET v='changed' WHERE id=1")
	must(t, os.Rename(aside, tree))
	st = d.waitCycles(1, 20*time.Second)
	if st.UploadsSuccess != first.UploadsSuccess+1 || st.Unsynced != 0 || st.DatabasesGone != 0 {
		t.Errorf("back with one change: uploads_success %d (before: %d), unsynced %d, databases_gone %d",
			st.UploadsSuccess, first.UploadsSuccess, st.Unsynced, st.DatabasesGone)
	}
	verifyTarget(t, root, target, paths)
	d.stop()
}

// Mode and owner are part of a backup: a change of them is uploaded, a new time
// stamp is not.
func Test14ModeIsBackedUp(t *testing.T) {
	t.Parallel()
	o := newOne(t, "state_dir: "+t.TempDir())
	p := o.make("x")
	must(t, os.Chmod(p, 0o640))
	once(t, o.c)
	mode := func(want string) {
		t.Helper()
		if _, tr := newest(t, o.target, o.key("x")); tr.Mode != want {
			t.Errorf("mode in the newest object: %s, want %s", tr.Mode, want)
		}
	}
	mode("0640")
	before := o.stamps("x")
	must(t, os.Chmod(p, 0o600))
	once(t, o.c)
	if o.stamps("x") == before {
		t.Error("chmod: nothing was uploaded")
	}
	mode("0600")
	before = o.stamps("x")
	now := time.Now()
	must(t, os.Chtimes(p, now, now))
	r := once(t, o.c)
	if o.stamps("x") != before {
		t.Errorf("touch: something was uploaded\n%s", r.all())
	}
	if !strings.Contains(r.all(), "unchanged=1") {
		t.Errorf("touch: the database was not looked at\n%s", r.all())
	}
	want := must1[[]byte](t)(os.ReadFile(p))
	must(t, os.Remove(p))
	if r := litestream(t, []string{"restore", "-config", o.c.write(t, 0), p}); r.code != 0 {
		t.Fatalf("restore: exit %d\n%s", r.code, r.all())
	}
	if err := compareImage(want, p); err != nil {
		t.Error(err)
	}
	if got := must1[os.FileInfo](t)(os.Stat(p)).Mode(); got != 0o600 {
		t.Errorf("restored with mode %v, want 0600", got)
	}
}

// The same prefix and template, but another pattern: other keys. Nothing that the
// state says of the old ones holds.
func Test14PatternEdited(t *testing.T) {
	t.Parallel()
	root, target, state := t.TempDir(), t.TempDir(), t.TempDir()
	config := func(pattern string) settings {
		return settings{pattern: root + "/" + pattern, target: fileTargetPath(target, "all/{{tenant}}"), keys: []string{"state_dir: " + state}}
	}
	names := []string{"a", "b", "c"}
	path := func(name string) string { return filepath.Join(root, name+".db") }
	for _, n := range names {
		simple(t, path("tenant-"+n))
	}
	// Not matched at first; then its key is the one that tenant-a had.
	simple(t, path("a"))
	once(t, config("tenant-*.db"))
	old := map[string]map[string][32]byte{}
	for _, n := range names {
		old[n] = sums(t, target, "all/"+n)
		if len(old[n]) != 1 {
			t.Fatalf("%d objects below all/%s", len(old[n]), n)
		}
		sameImage(t, path("tenant-"+n), restore(t, config("tenant-*.db").write(t, 0), path("tenant-"+n)))
	}
	c := config("*.db")
	once(t, c)
	for _, n := range []string{"tenant-a", "tenant-b", "tenant-c", "a"} {
		img, tr := newest(t, target, "all/"+n)
		if err := compareBytes(sqliteImage(t, path(n)), img); err != nil || tr.Path != path(n) {
			t.Errorf("newest object below all/%s is of %s: %v", n, tr.Path, err)
		}
		sameImage(t, path(n), restore(t, c.write(t, 0), path(n)))
	}
	for _, n := range names {
		now := sums(t, target, "all/"+n)
		for name, sum := range old[n] {
			if now[name] != sum {
				t.Errorf("all/%s/%s has gone or was overwritten", n, name)
			}
		}
	}
	ascending(t, target, "all/a")
	n, _ := countObjects(t, target)
	if n != 3+4 {
		t.Errorf("%d objects, want 7", n)
	}
	once(t, c)
	if again, _ := countObjects(t, target); again != n {
		t.Errorf("a second cycle made %d objects of %d", again, n)
	}
}

// Another directory under the name of the target: while it is stopped, and while it
// runs.
func Test14TargetReplaced(t *testing.T) {
	t.Parallel()
	root, base := t.TempDir(), t.TempDir()
	target := filepath.Join(base, "target")
	must(t, os.Mkdir(target, 0o755))
	paths := makeFleet(t, root, 12)
	replace := func(away string) {
		t.Helper()
		must(t, os.Rename(target, filepath.Join(base, away)))
		must(t, os.Mkdir(target, 0o755))
	}
	c := settings{pattern: seedPattern(root), interval: "1s", target: fileTarget(target), keys: []string{"state_dir: " + t.TempDir()}}
	full := func(what string) *daemon {
		t.Helper()
		d := replicate(t, c)
		d.waitSynced(20 * time.Second)
		st := d.waitCycles(1, 20*time.Second)
		if st.UploadsSuccess != len(paths) || st.UploadsFailed != 0 {
			t.Errorf("%s: uploads_success %d, uploads_failed %d, want %d and 0", what, st.UploadsSuccess, st.UploadsFailed, len(paths))
		}
		verifyTarget(t, root, target, paths)
		return d
	}
	full("first start").stop()
	replace("first")
	d := full("replaced while stopped")

	replace("second")
	before := photo(t, filepath.Join(base, "second"))
	for _, p := range paths[:5] {
		change(t, p)
	}
	st := d.waitCycles(2, 20*time.Second)
	if st.UploadsSuccess != len(paths) || st.UploadsFailed == 0 || st.DatabasesFailed != 5 || st.Unsynced != 5 || len(st.Failures) != 5 {
		t.Errorf("replaced while running: %+v", st)
	}
	for _, f := range st.Failures {
		if f.Stage != "upload" || !strings.Contains(f.Message, `"`+target+`"`) {
			t.Errorf("failure %+v does not name %s", f, target)
		}
	}
	d.stop()
	if n, _ := countObjects(t, target); n != 0 {
		t.Errorf("%d objects in the new directory", n)
	}
	second := filepath.Join(base, "second")
	samePhoto(t, before, photo(t, second), underDir(filepath.Join(second, ".litestream-multi-db-tmp")))
	d = full("restarted")
	d.stop()
	// And the next start finds it as it was left.
	d = replicate(t, c)
	if st := d.waitCycles(1, 20*time.Second); st.UploadsSuccess != 0 || st.Unsynced != 0 {
		t.Errorf("started again: %+v", st)
	}
	d.stop()
}

// A state_dir that holds files of something else.
func Test14StateDirOfSomebodyElse(t *testing.T) {
	t.Parallel()
	foreignDB := func(t testing.TB, dir string) {
		build(t, filepath.Join(dir, "state.db"), "CREATE TABLE accounts(id INTEGER PRIMARY KEY, v TEXT)", "INSERT INTO accounts(v) VALUES('precious')")
	}
	for _, tt := range []struct {
		name  string
		setup func(t testing.TB, dir string)
		code  int
		say   string
	}{
		{"state.db", foreignDB, 1, "state.db"},
		{"state.db with a WAL", func(t testing.TB, dir string) {
			foreignDB(t, dir)
			p := filepath.Join(dir, "state.db")
			w := newWriter(t) // stays open until the end of the test
			w.open(p, "WAL", "PRAGMA wal_autocheckpoint=0")
			w.exec(p, "INSERT INTO accounts(v) VALUES('in the wal')")
			if !exists(p+"-wal") || !exists(p+"-shm") {
				t.Fatal("no WAL: the test shows nothing")
			}
		}, 1, "state.db"},
		{"spool", func(t testing.TB, dir string) {
			must(t, os.Mkdir(filepath.Join(dir, "spool"), 0o755))
			for _, name := range []string{"letter", ".us-letter", ".us-0123456789abcdeg", ".us-0123456789abcdef0"} {
				must(t, os.WriteFile(filepath.Join(dir, "spool", name), []byte("to be sent"), 0o644))
			}
		}, 0, ""},
		{"lock", func(t testing.TB, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, "lock"), []byte("somebody's notes\n"), 0o644))
		}, 1, "lock"},
		{"lock that begins like ours", func(t testing.TB, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, "lock"), []byte("1234\nnot a pid alone\n"), 0o644))
		}, 1, "lock"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			state := t.TempDir()
			o := newOne(t, "state_dir: "+state)
			o.make("x")
			tt.setup(t, state)
			before := contents(t, state)
			c := o.c
			c.mayFail = true
			for range 2 {
				r := once(t, c)
				if r.code != tt.code || !strings.Contains(r.stderr, tt.say) {
					t.Errorf("exit %d, want %d and %q in\n%s", r.code, tt.code, tt.say, r.all())
				}
				after := contents(t, state)
				for name, b := range before {
					if got, ok := after[name]; !ok || !bytes.Equal(got, b) {
						t.Errorf("%s has gone or was changed (there: %v)", name, ok)
					}
				}
			}
			n, _ := countObjects(t, o.target)
			if want := 1 - tt.code; n != want {
				t.Errorf("%d objects, want %d", n, want)
			}
		})
	}
}

// contents returns the bytes of every file of a tree, by path.
func contents(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for path := range photo(t, dir) {
		if must1[os.FileInfo](t)(os.Lstat(path)).Mode().IsRegular() {
			out[path] = must1[[]byte](t)(os.ReadFile(path))
		}
	}
	return out
}

// A single cycle that a signal ends has not backed up everything, and says so.
func Test14OnceCutShort(t *testing.T) {
	t.Parallel()
	cut := func(t *testing.T, endpoint string, connected <-chan struct{}) {
		t.Helper()
		root := t.TempDir()
		makeFleet(t, root, 3)
		c := settings{pattern: seedPattern(root), target: new(s3server).target(endpoint), noHTTP: true, top: []string{"shutdown-sync-timeout: 1s"}}
		cmd := command([]string{"replicate", "-once", "-config", c.write(t, 0)})
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		must(t, startCommand(cmd))
		exited := make(chan error, 1)
		go func() { exited <- cmd.Wait() }()
		kill := func() {
			_ = cmd.Process.Kill()
			<-exited
		}
		select {
		case <-connected:
		case <-exited:
			t.Fatalf("ended before it asked the server\n%s", out.String())
		case <-time.After(20 * time.Second):
			kill()
			t.Fatalf("never asked the server\n%s", out.String())
		}
		start := time.Now()
		must(t, cmd.Process.Signal(syscall.SIGTERM))
		select {
		case <-exited:
		case <-time.After(15 * time.Second):
			kill()
			t.Fatalf("still running 15 s after SIGTERM\n%s", out.String())
		}
		if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(out.String(), "Error: ") {
			t.Errorf("exit %d, want 1 and an error\n%s", code, out.String())
		}
		if took := time.Since(start); took > 6*time.Second {
			t.Errorf("SIGTERM with shutdown-sync-timeout 1s took %v", took)
		}
	}
	t.Run("listing", func(t *testing.T) {
		l := must1[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
		connected := make(chan struct{})
		var conns []net.Conn
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				conns = append(conns, conn) // kept open, never read
				if len(conns) == 1 {
					close(connected)
				}
			}
		}()
		defer func() {
			l.Close()
			<-done
			for _, conn := range conns {
				conn.Close()
			}
		}()
		cut(t, "http://"+l.Addr().String(), connected)
	})
	t.Run("upload", func(t *testing.T) {
		s := startS3(t)
		p := startProxy(t, s.hostPort(), nil)
		connected, first := make(chan struct{}), sync.Once{}
		p.set(func(_ int64, r *http.Request) int {
			if r.Method == http.MethodPut {
				first.Do(func() { close(connected) })
				select {
				case <-r.Context().Done():
				case <-t.Context().Done():
				}
				return 503
			}
			return 0
		})
		cut(t, p.url(), connected)
		if n, _ := countObjects(t, s.dir()); n != 0 {
			t.Errorf("%d objects", n)
		}
	})
}

// A lease on a database makes whoever opens it wait for its holder. That is one
// database's trouble.
func Test14Lease(t *testing.T) {
	t.Parallel()
	o := newOne(t, "state_dir: "+t.TempDir())
	o.c.interval = "1s"
	names := []string{"a", "b", "c", "d"}
	for _, n := range names {
		o.make(n)
	}
	held := o.make("held")
	signal.Ignore(syscall.SIGIO) // how the kernel asks the holder to let go
	f := must1[*os.File](t)(os.OpenFile(held, os.O_RDWR, 0))
	defer f.Close()
	lease := func(kind int) error {
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, kind)
		return err
	}
	if err := lease(unix.F_WRLCK); errors.Is(err, unix.EACCES) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINVAL) {
		t.Skipf("F_SETLEASE: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	d := replicate(t, o.c)
	first := d.wait(20*time.Second, "the first cycle", func(s stats) bool { return s.Cycles >= 1 })
	st := d.waitCycles(1, 20*time.Second)
	t.Logf("cycles of %.2f s and %.2f s; failures %+v", first.CycleSeconds, st.CycleSeconds, st.Failures)
	if first.CycleSeconds > 10 || st.CycleSeconds > 10 {
		t.Errorf("cycles of %.1f s and %.1f s", first.CycleSeconds, st.CycleSeconds)
	}
	for _, n := range names {
		o.check(n)
	}
	if len(objects(t, o.target, o.key("held"))) == 0 {
		if st.Unsynced != 1 || st.DatabasesFailed != 1 || len(st.Failures) != 1 || st.Failures[0].Path != held || st.Failures[0].Stage != "read" {
			t.Errorf("a leased database that is not in the target: %+v", st)
		}
	} else {
		t.Error("read in spite of the lease: the test shows nothing")
	}
	must(t, lease(unix.F_UNLCK))
	must(t, f.Close())
	st = d.waitSynced(15 * time.Second)
	if st.DatabasesFailed != 0 || len(st.Failures) != 0 {
		t.Errorf("after the lease was given back: %+v", st)
	}
	o.check("held")
	d.stop()
}

// withoutKeys is an environment in which the AWS chain finds nothing.
func withoutKeys(home string) option {
	return func(c *exec.Cmd) {
		var env []string
		for _, kv := range c.Env {
			if !strings.HasPrefix(kv, "AWS_") && !strings.HasPrefix(kv, "LITESTREAM_") && !strings.HasPrefix(kv, "HOME=") {
				env = append(env, kv)
			}
		}
		c.Env = append(env, "HOME="+home, "AWS_EC2_METADATA_DISABLED=true")
	}
}

// Without any credentials nothing is sent, not even unsigned.
func Test14NoCredentials(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := t.TempDir()
	paths := makeFleet(t, root, 10)
	target := block("s3", "region: us-east-1", "bucket: "+bucket, `path: "`+seedTemplate+`"`, "endpoint: "+s.url())
	c := settings{pattern: seedPattern(root), interval: "1s", target: target, keys: []string{"state_dir: " + t.TempDir()}}
	none := withoutKeys(t.TempDir())
	d := replicate(t, c, none)
	st := d.wait(20*time.Second, "two cycles", func(s stats) bool { return s.Cycles >= 2 })
	if st.UploadsSuccess != 0 || st.Unsynced != len(paths) || st.DatabasesFailed != len(paths) || len(st.Failures) != len(paths) || st.APICalls.Put != 0 {
		t.Errorf("without credentials: %+v", st)
	}
	for _, f := range st.Failures {
		if f.Stage != "upload" || !strings.Contains(f.Message, "no credentials") {
			t.Errorf("failure %+v does not say \"no credentials\"", f)
		}
	}
	d.stop()
	c.mayFail = true
	if r := once(t, c, none); r.code != 1 || !strings.Contains(r.stderr, "no credentials") {
		t.Errorf("replicate -once: exit %d, want 1 and \"no credentials\"\n%s", r.code, r.all())
	}
	if exists(s.log) {
		if got := s.counts(0); got != (counts{}) {
			t.Errorf("the server counts %+v", got)
		}
	}
	if n, _ := countObjects(t, s.dir()); n != 0 {
		t.Errorf("%d objects", n)
	}
	// With keys in the environment the same state goes on.
	d = replicate(t, c, none, withEnv("AWS_ACCESS_KEY_ID="+accessKey, "AWS_SECRET_ACCESS_KEY="+secretKey))
	d.waitSynced(20 * time.Second)
	verifyTarget(t, root, s.dir(), paths)
	d.stop()
}

// A signal while -once starts: it either backs up, or does not exit with 0.
func Test14OnceAndSignalAtStart(t *testing.T) {
	t.Parallel()
	for range 20 {
		root, target := t.TempDir(), t.TempDir()
		paths := makeFleet(t, root, 1)
		c := settings{pattern: seedPattern(root), target: fileTarget(target), noHTTP: true}
		cmd := command([]string{"replicate", "-once", "-config", c.write(t, 0)})
		log := must1[io.ReadCloser](t)(cmd.StdoutPipe())
		must(t, startCommand(cmd))
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			if strings.Contains(lines.Text(), "msg=litestream ") {
				must(t, cmd.Process.Signal(syscall.SIGTERM))
				break
			}
		}
		for lines.Scan() {
		}
		_ = cmd.Wait() // the exit code is looked at
		if cmd.ProcessState.ExitCode() == 0 && len(objects(t, target, keyOf(root, paths[0]))) == 0 {
			t.Fatal("exit 0, and nothing is backed up")
		}
	}
}

// The target takes a version, its answer is lost, and the database goes back to the
// bytes that were acknowledged last: those have to be the newest again.
func Test14UnknownOutcome(t *testing.T) {
	t.Parallel()
	s, root := startS3(t), t.TempDir()
	path := makeFleet(t, root, 1)[0]
	p := startProxy(t, s.hostPort(), nil)
	c := settings{pattern: seedPattern(root), interval: "1s", target: s.target(p.url())}
	d := replicate(t, c)
	d.waitSynced(30 * time.Second)
	become := func(image []byte) {
		t.Helper()
		next := filepath.Join(filepath.Dir(path), ".next")
		must(t, os.WriteFile(next, image, 0o644))
		must(t, os.Rename(next, path))
	}
	a := must1[[]byte](t)(os.ReadFile(path))
	change(t, path)
	b := must1[[]byte](t)(os.ReadFile(path))
	if bytes.Equal(a, b) {
		t.Fatal("the two versions are the same")
	}
	become(a)
	d.waitCycles(2, 30*time.Second)
	d.waitSynced(30 * time.Second)

	p.lie.Store(true)
	become(b)
	d.wait(30*time.Second, "the upload to fail", func(st stats) bool { return st.DatabasesFailed == 1 })
	become(a)
	p.lie.Store(false)
	d.waitCycles(2, 30*time.Second)
	d.waitSynced(30 * time.Second)
	out := filepath.Join(t.TempDir(), "out.db")
	if r := litestream(t, []string{"restore", "-config", d.config, "-o", out, path}); r.code != 0 {
		t.Fatalf("restore: exit %d\n%s", r.code, r.all())
	}
	if err := compareImage(a, out); err != nil {
		t.Errorf("the newest object is not what the database holds: %v", err)
	}
}
