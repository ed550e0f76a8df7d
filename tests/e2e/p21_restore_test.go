package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// makeMixedFleet is a fleet of 4 KB to 5 MB, in rollback and WAL mode, some with a
// live -wal, of several modes and, as root, owners.
func makeMixedFleet(t testing.TB, root string, n int) []string {
	t.Helper()
	paths := makeFleet(t, root, n)
	for i := range 10 {
		p := paths[(i*131+7)%n]
		mode := []string{"DELETE", "WAL"}[i%2]
		build(t, p, "PRAGMA synchronous=OFF", "PRAGMA journal_mode="+mode, fmt.Sprintf(`WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<%d)
			INSERT INTO t(tag, pad) SELECT 'big', randomblob(50000) FROM c`, 10*(i+1)))
	}
	w := newWriter(t)
	for i := range 20 {
		p := paths[(i*97+3)%n]
		w.open(p, "WAL", "PRAGMA wal_autocheckpoint=0")
		w.exec(p, "INSERT INTO t(tag) VALUES('only in the wal')")
	}
	w.kill()
	for i, p := range paths {
		must(t, os.Chmod(p, []os.FileMode{0o640, 0o600, 0o644, 0o664, 0o660}[i%5]))
		if os.Geteuid() == 0 {
			must(t, os.Chown(p, 1000+i%3, 2000+i%2))
		}
	}
	return paths
}

// Point 1: everything is lost but configuration and bucket, and comes back; also if
// the restore is killed half-way and begun again.
func Test21FleetRestore(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := filepath.Join(t.TempDir(), "data")
	n := envInt("FLEET_COUNT", 2000)
	paths := makeMixedFleet(t, root, n)
	c := settings{pattern: seedPattern(root), target: s.target(s.url())}
	once(t, c)
	for _, p := range paths[:n/10] { // these have two objects
		build(t, p, "INSERT INTO t(tag) VALUES('later')")
		removeSides(t, p)
	}
	once(t, c)
	want := make(map[string]lost)
	for _, p := range paths {
		want[p] = remember(t, p)
	}
	objectCount, objectBytes := countObjects(t, s.dir())
	if objectCount < n+n/10 {
		t.Fatalf("%d objects of %d databases", objectCount, n)
	}
	must(t, os.RemoveAll(root))
	config := c.write(t, 0)

	// What it would be. Nothing is written, nothing is fetched.
	mark := s.mark()
	a := multiDB(t, config, "restore", "-dry-run").good(t)
	if exists(root) {
		t.Error("-dry-run wrote something")
	}
	if ops := s.operations(mark); ops["GetObject"] != 0 || ops["ListObjectsV2"] != pages(objectCount) {
		t.Errorf("-dry-run: the server counts %v", ops)
	}
	if len(a.by("would-restore")) != n || a.num("databases") != n || a.num("restored") != 0 || a.num("database_bytes") != 0 ||
		a.num("get") != n || a.num("list") != pages(objectCount) || a.num("object_bytes") <= 0 || int64(a.num("object_bytes")) >= objectBytes {
		t.Errorf("-dry-run: %d rows, %v", len(a.rows), a.summary)
	}
	cost := float64(n)*0.0004/1000 + float64(pages(objectCount))*0.005/1000
	if got, ok := a.summary["cost_usd"].(float64); !ok || got < cost*0.9 || got > cost*1.1 {
		t.Errorf("-dry-run: cost_usd %v, want %v", a.summary["cost_usd"], cost)
	}

	// Killed half-way. What is visible by then is whole.
	w := watchTree(root, want)
	cmd := command(verbArgs(config, "restore", "-parallelism", "4"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, startCommand(cmd))
	ok := poll(60*time.Second, func() bool { return w.n.Load() >= int64(n/4) })
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if !ok {
		t.Fatalf("%d databases after a minute\n%s", w.n.Load(), tail(out.String(), 2000))
	}
	w.end(t)
	visible, hidden := tree(root)
	if len(visible) == 0 || len(visible) >= n || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("%d of %d databases are there when it was killed: the test shows nothing", len(visible), n)
	}
	t.Logf("killed with %d of %d databases in place, %d hidden files left", len(visible), n, len(hidden))

	// Without a word about it, those that exist are failures, and stay as they are.
	few := min(10, len(visible))
	some := photo(t, filepath.Dir(visible[0]))
	a = multiDB(t, config, "restore", "-match", visible[0])
	if a.code != 1 || len(a.by("failed")) != 1 || !strings.Contains(a.rows[0].Error, "-force") {
		t.Errorf("restore over what exists: exit %d, %+v", a.code, a.rows)
	}
	if got := photo(t, filepath.Dir(visible[0]))[visible[0]]; got != some[visible[0]] {
		t.Errorf("restore over what exists changed it from %s to %s", some[visible[0]], got)
	}

	// Again, and now to its end.
	before := photo(t, root)
	w = watchTree(root, want)
	mark = s.mark()
	a = multiDB(t, config, "restore", "-if-db-not-exists").good(t)
	w.end(t)
	if got := a.by("skipped"); len(got) != len(visible) || a.num("skipped") != len(visible) {
		t.Errorf("%d rows and %d in the summary were skipped, want %d", len(got), a.num("skipped"), len(visible))
	}
	if got := a.by("restored"); len(got) != n-len(visible) || a.num("restored") != n-len(visible) || a.num("failed") != 0 {
		t.Errorf("%d restored, %v", len(got), a.summary)
	}
	if ops := s.operations(mark); ops["GetObject"] != n-len(visible) || ops["ListObjectsV2"] != pages(objectCount) {
		t.Errorf("after the kill: the server counts %v, want %d GETs and %d LISTs", ops, n-len(visible), pages(objectCount))
	}
	after := photo(t, root)
	for _, p := range visible[:few] {
		if before[p] != after[p] {
			t.Errorf("%q was there and was touched", p)
		}
	}
	allBack(t, root, want)

	// All of it elsewhere, in one go.
	elsewhere := filepath.Join(t.TempDir(), "new", "place")
	untouched := photo(t, root)
	want = moved(want, root, elsewhere)
	w = watchTree(elsewhere, want)
	mark = s.mark()
	a = multiDB(t, config, "restore", "-output-dir", elsewhere, "-integrity-check", "quick").good(t)
	w.end(t)
	if ops := s.operations(mark); ops["GetObject"] != n || ops["ListObjectsV2"] != pages(objectCount) ||
		a.num("get") != n || a.num("list") != pages(objectCount) {
		t.Errorf("the server counts %v of %d objects; summary: %v", ops, objectCount, a.summary)
	}
	var sum, size int64
	for _, r := range a.rows {
		l, ok := want[r.Output]
		if !ok || r.Output != elsewhere+strings.TrimPrefix(r.Path, root) || r.DatabaseSize != int64(l.size) || r.Mode != fmt.Sprintf("%04o", l.mode) ||
			!strings.HasPrefix(r.Key, keyOf(root, r.Path)+"/") || !strings.HasSuffix(r.Key, ".db.lz4") || r.SnapshotTime == nil || r.Time == nil || r.Error != "" {
			t.Fatalf("row %+v of %+v", r, l)
		}
		sum += r.Size
		size += r.DatabaseSize
	}
	if a.num("databases") != n || a.num("restored") != n || int64(a.num("object_bytes")) != sum || int64(a.num("database_bytes")) != size {
		t.Errorf("summary %v; the rows have %d and %d bytes", a.summary, sum, size)
	}
	allBack(t, elsewhere, want)
	samePhoto(t, untouched, photo(t, root), nil)
	t.Logf("%d databases, %d objects, %d bytes in %v s", n, objectCount, size, a.summary["seconds"])
}

// removeSides takes the -wal and -shm away that an application left which has ended.
func removeSides(t testing.TB, path string) {
	t.Helper()
	if exists(path + "-wal") {
		t.Fatalf("%q has a -wal after its last connection was closed", path)
	}
}

// Each database by itself: what cannot be put in place is named, the others come.
func Test21OneFails(t *testing.T) {
	t.Parallel()
	o := newOne(t)
	names := []string{"a", "b", "c", "d", "e"}
	want := map[string]lost{}
	for _, n := range names {
		want[o.make(n)] = lost{}
	}
	once(t, o.c)
	for p := range want {
		want[p] = remember(t, p)
	}
	must(t, os.RemoveAll(o.root))
	blocked := o.path("c")
	must(t, os.MkdirAll(blocked, 0o755)) // a directory is in its place
	a := multiDB(t, o.c.write(t, 0), "restore", "-force")
	if a.code != 1 || a.num("failed") != 1 || a.num("restored") != 4 || a.row(blocked).Status != "failed" || a.row(blocked).Error == "" {
		t.Errorf("exit %d, %v, %+v", a.code, a.summary, a.rows)
	}
	if !strings.Contains(a.stderr, "1 of 5") {
		t.Errorf("the error does not count: %s", a.stderr)
	}
	must(t, os.Remove(blocked))
	delete(want, blocked)
	allBack(t, o.root, want)

	// The text form names it as it happens, and sums up.
	must(t, os.MkdirAll(blocked, 0o755))
	r := litestream(t, []string{"multi-db", "restore", "-force", "-config", o.c.write(t, 0)})
	if r.code != 1 || !strings.Contains(r.stderr, "failed "+blocked+":") || !strings.Contains(r.stdout, "4") {
		t.Errorf("exit %d\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
	}
	for _, args := range [][]string{{"-match", "/nowhere/*"}, {"-parallelism", "0"}, {"-parallelism", "1001"}, {"-timestamp", "yesterday"}, {"-integrity-check", "maybe"}, {"extra"}} {
		if r := litestream(t, append([]string{"multi-db", "restore", "-config", o.c.write(t, 0)}, args...)); r.code != 1 || r.stderr == "" {
			t.Errorf("restore %v: exit %d\n%s", args, r.code, r.all())
		}
	}
}

// -match is for the original path, and its * crosses slashes.
func Test21Match(t *testing.T) {
	t.Parallel()
	root, target := filepath.Join(t.TempDir(), "data"), t.TempDir()
	paths := makeFleet(t, root, 40)
	c := settings{pattern: seedPattern(root), target: fileTarget(target)}
	once(t, c)
	config := c.write(t, 0)
	for glob, want := range map[string]func(p string) bool{
		"*":                 func(string) bool { return true },
		root + "/p1/*":      func(p string) bool { return strings.HasPrefix(p, root+"/p1/") },
		"*/dev/*/t0001?.db": func(p string) bool { return strings.Contains(p, "/dev/") && strings.Contains(p, "/t0001") },
		"*/t0000[135].db": func(p string) bool {
			return strings.HasSuffix(p, "1.db") && strings.Contains(p, "t00001") || strings.Contains(p, "t00003") || strings.Contains(p, "t00005")
		},
		paths[7]: func(p string) bool { return p == paths[7] },
	} {
		out := t.TempDir()
		a := multiDB(t, config, "restore", "-match", glob, "-output-dir", out).good(t)
		var n int
		for _, p := range paths {
			is := exists(out + strings.TrimPrefix(p, root))
			if is != want(p) {
				t.Errorf("-match %s: %s restored: %v", glob, p, is)
			}
			if is {
				n++
			}
		}
		if visible, _ := tree(out); len(visible) != n || a.num("databases") != n || n == 0 {
			t.Errorf("-match %s: %d files, %v", glob, len(visible), a.summary)
		}
	}
	for _, glob := range []string{"t00001.db", root, "*/t9*"} {
		if a := multiDB(t, config, "restore", "-match", glob, "-output-dir", t.TempDir()); a.code != 1 || !strings.Contains(a.stderr, "no backup") {
			t.Errorf("-match %s: exit %d\n%s", glob, a.code, a.stderr)
		}
	}
}

// The hosts of a shared bucket.
func Test21Host(t *testing.T) {
	t.Parallel()
	s := startFakeS3(t)
	root := filepath.Join(t.TempDir(), "data")
	for _, host := range []string{"red", "blue"} {
		for _, n := range []string{"a", "b"} {
			p := filepath.Join(root, n+".db")
			s.put(fmt.Sprintf("x/%s/%s/20260102T030405Z.db.lz4", host, n), forge(p, smallImage(t, host+" "+n), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)))
		}
	}
	must(t, os.Mkdir(root, 0o755))
	c := settings{pattern: root + "/*.db", target: s.target("x/{{hostname}}/{{tenant}}")}
	config := c.write(t, 0)
	for _, verb := range []string{"restore", "list", "verify"} {
		a := multiDB(t, config, verb)
		if a.code != 1 || !strings.Contains(a.stderr, "blue, red") || !strings.Contains(a.stderr, "-host") {
			t.Errorf("%s: exit %d, want 1 and the hosts\n%s", verb, a.code, a.stderr)
		}
	}
	out := t.TempDir()
	multiDB(t, config, "restore", "-host", "blue", "-output-dir", out).good(t)
	for _, n := range []string{"a", "b"} {
		if got := strings.TrimSpace(queryString(t, filepath.Join(out, n+".db"), "SELECT tag FROM t WHERE id=1")); got != "blue "+n {
			t.Errorf("%s: %q", n, got)
		}
	}
	if a := multiDB(t, (settings{pattern: root + "/*.db", target: s.target("x/red/{{tenant}}")}).write(t, 0), "restore", "-host", "red", "-output-dir", t.TempDir()); a.code != 1 {
		t.Errorf("-host without {{hostname}}: exit %d\n%s", a.code, a.all())
	}
}

// A restore that a signal ends says so, leaves nothing half-done, and can be gone on
// with.
func Test21Interrupted(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := filepath.Join(t.TempDir(), "data")
	paths := makeFleet(t, root, 600)
	c := settings{pattern: seedPattern(root), target: s.target(s.url())}
	once(t, c)
	want := make(map[string]lost)
	for _, p := range paths {
		want[p] = remember(t, p)
	}
	must(t, os.RemoveAll(root))
	// The server stops to answer after some objects.
	p := startProxy(t, s.hostPort(), nil)
	var gets atomic.Int64
	p.set(func(_ int64, r *http.Request) int {
		if !r.URL.Query().Has("list-type") && gets.Add(1) > 200 {
			<-r.Context().Done()
		}
		return 0
	})
	c.target = s.target(p.url())
	config := c.write(t, 0)
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		gets.Store(100)
		w := watchTree(root, want)
		var at time.Time
		r, _ := measured(t, 60*time.Second, verbArgs(config, "restore", "-if-db-not-exists", "-parallelism", "10"), func(p *os.Process) {
			if at.IsZero() && gets.Load() > 205 {
				at = time.Now()
				_ = p.Signal(sig)
			}
		})
		w.end(t)
		if took := time.Since(at); r.code == 0 || r.stderr == "" || at.IsZero() || took > 5*time.Second {
			t.Errorf("%v: exit %d %v after it\n%s\n%s", sig, r.code, took, tail(r.stdout, 700), tail(r.stderr, 500))
		}
		if visible, hidden := tree(root); len(hidden) != 0 || len(visible) == len(paths) {
			t.Errorf("%v: %d files, and %d hidden ones, the first: %q", sig, len(visible), len(hidden), hidden)
		}
	}
	p.set(nil)
	multiDB(t, config, "restore", "-if-db-not-exists").good(t)
	allBack(t, root, want)
}

// The disk fills up: what is there is whole, what is not is named, and nothing hidden
// takes the space.
func Test21DiskFull(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a mount")
	}
	root, target := filepath.Join(t.TempDir(), "data"), t.TempDir()
	paths := makeFleet(t, root, 200)
	c := settings{pattern: seedPattern(root), target: fileTarget(target)}
	once(t, c)
	want := make(map[string]lost)
	for _, p := range paths {
		want[p] = remember(t, p)
	}
	must(t, os.RemoveAll(root))
	must(t, os.Mkdir(root, 0o755))
	// The small disk is seen by the command alone; a copy of it is what is looked at.
	saved := t.TempDir()
	small := func(c *exec.Cmd) {
		script := `mount -t tmpfs -o size=3m none "$1" || exit 99; src=$1; dst=$2; shift 2; "$@"; code=$?; cp -a "$src/." "$dst/" || exit 98; exit $code`
		w := exec.Command("unshare", append([]string{"-m", "sh", "-c", script, "sh", root, saved}, c.Args...)...)
		c.Path, c.Args, c.Err = w.Path, w.Args, w.Err
	}
	a := takeApart(t, litestream(t, verbArgs(c.write(t, 0), "restore"), small))
	if a.code != 1 || a.num("failed") == 0 || a.num("restored") == 0 || a.num("failed")+a.num("restored") != len(paths) {
		t.Fatalf("exit %d, %v\n%s", a.code, a.summary, tail(a.stderr, 1000))
	}
	visible, hidden := tree(saved)
	if len(visible) != a.num("restored") || len(hidden) != 0 {
		t.Errorf("%d files and %d hidden ones, %d were restored", len(visible), len(hidden), a.num("restored"))
	}
	there := moved(want, root, saved)
	for _, p := range visible {
		if err := there[p].isBack(p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	for _, p := range a.by("failed") {
		if e := a.row(p).Error; !strings.Contains(strings.ToLower(e), "space") {
			t.Errorf("%q: %s", p, e)
		}
	}
}

// Without rights: the modes come back, the owner is who restores; a directory that
// cannot be written to is the failure of what is in it.
func Test21AsNobody(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root to be somebody else")
	}
	base := openTemp(t)
	root, target := filepath.Join(base, "data"), filepath.Join(base, "target")
	must(t, os.Mkdir(target, 0o755))
	paths := makeFleet(t, root, 20)
	want := make(map[string]lost)
	for i, p := range paths {
		must(t, os.Chmod(p, []os.FileMode{0o640, 0o600, 0o604}[i%3]))
		must(t, os.Chown(p, 1234, 4321))
	}
	c := settings{pattern: seedPattern(root), target: fileTarget(target), keys: []string{"state_dir: " + t.TempDir()}}
	once(t, c)
	for _, p := range paths {
		l := remember(t, p)
		l.uid, l.gid = 65534, 65534
		want[p] = l
	}
	config := filepath.Join(base, "litestream.yml")
	must(t, os.WriteFile(config, []byte(c.text(0)), 0o644))
	must(t, filepath.WalkDir(target, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(path, 0o755)
		}
		return os.Chmod(path, 0o644)
	}))
	must(t, os.RemoveAll(root))
	must(t, os.Mkdir(root, 0o755))
	must(t, os.Chown(root, 65534, 65534))
	locked := filepath.Join(root, "p1")
	must(t, os.Mkdir(locked, 0o755)) // root's
	a := takeApart(t, litestream(t, verbArgs(config, "restore"), asNobody()))
	if a.code != 1 || a.num("restored") != 15 || a.num("failed") != 5 {
		t.Errorf("exit %d, %v\n%s", a.code, a.summary, tail(a.stderr, 1000))
	}
	for _, p := range a.by("failed") {
		if !strings.HasPrefix(p, locked+"/") {
			t.Errorf("%+v", a.row(p))
		}
		delete(want, p)
	}
	allBack(t, root, want)
}
