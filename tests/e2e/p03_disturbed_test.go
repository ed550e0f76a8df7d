package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// openTemp is a temporary directory that other users can reach.
func openTemp(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, os.Chmod(dir, 0o755))
	return dir
}

// spill makes an open transaction that has outgrown its cache: pages of it are in
// the database file, and the journal (or the WAL) holds what it takes to undo them.
const spill = `BEGIN IMMEDIATE; UPDATE t SET v=hex(randomblob(200));
	INSERT INTO t(v) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<300) SELECT hex(randomblob(200)) FROM c;`

// leftBehind makes a database with rows and kills its writer in the middle of a
// transaction in the given journal mode.
func leftBehind(t testing.TB, path, mode string) {
	t.Helper()
	if !exists(path) {
		simple(t, path)
	}
	fill(t, path, 300)
	w := newWriter(t)
	w.open(path, mode, "PRAGMA cache_size=5", "PRAGMA wal_autocheckpoint=0")
	w.exec(path, "INSERT INTO t(v) VALUES('committed')")
	w.exec(path, spill)
	w.kill()
}

type disturbed struct {
	*one
	w      *writer
	good   []string          // must be in the target
	failed map[string]string // name -> what its failure must say
}

// everyState makes one database in each state that the issue lists.
func everyState(t testing.TB, o *one, asRoot bool) *disturbed {
	d := &disturbed{one: o, w: newWriter(t), failed: map[string]string{}}
	good := func(name string) string { d.good = append(d.good, name); return o.path(name) }
	o.make("quiet")
	good("quiet")
	p := o.make("live-wal")
	good("live-wal")
	d.w.open(p, "WAL", "PRAGMA wal_autocheckpoint=0")
	d.w.exec(p, "INSERT INTO t(v) VALUES('in the wal')")
	leftBehind(t, good("orphan-wal"), "WAL")
	leftBehind(t, good("hot-journal"), "DELETE")
	if !exists(o.path("hot-journal")+"-journal") || !exists(o.path("orphan-wal")+"-wal") {
		t.Fatal("the killed writers have left nothing")
	}
	for _, mode := range []string{"DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"} {
		p := o.make("mode-" + mode)
		good("mode-" + mode)
		d.w.open(p, mode)
		d.w.exec(p, "INSERT INTO t(v) VALUES('x')")
	}
	p = o.make("exclusive")
	d.w.open(p, "DELETE", "PRAGMA locking_mode=EXCLUSIVE")
	d.w.exec(p, "BEGIN EXCLUSIVE; INSERT INTO t(v) VALUES('x')")
	d.failed["exclusive"] = "lock"
	must(t, os.WriteFile(o.path("zero"), nil, 0o644))
	must(t, os.WriteFile(o.path("text"), []byte(strings.Repeat("This is not a database.\n", 500)), 0o644))
	must(t, os.WriteFile(o.path("zero-with-wal"), nil, 0o644))
	must(t, os.WriteFile(o.path("zero-with-wal")+"-wal", must1[[]byte](t)(os.ReadFile(o.path("orphan-wal")+"-wal")), 0o644))
	ro := filepath.Join(o.root, "ro/databases/d/branches/b/tenants")
	leftBehind(t, filepath.Join(ro, "wal.db"), "WAL")
	leftBehind(t, filepath.Join(ro, "hot.db"), "TRUNCATE")
	simple(t, filepath.Join(ro, "quiet.db"), "PRAGMA journal_mode=WAL")
	must(t, os.Chmod(ro, 0o555))
	t.Cleanup(func() { _ = os.Chmod(ro, 0o755) })
	if !asRoot {
		o.make("unreadable")
		must(t, os.Chmod(o.path("unreadable"), 0))
		d.failed["unreadable"] = "ermission denied"
	}
	return d
}

// inReadOnly lists the databases that everyState puts in a read-only directory.
func (d *disturbed) inReadOnly() []string {
	ro := filepath.Join(d.root, "ro/databases/d/branches/b/tenants")
	return []string{filepath.Join(ro, "wal.db"), filepath.Join(ro, "hot.db"), filepath.Join(ro, "quiet.db")}
}

func (d *disturbed) verify(st stats) {
	d.t.Helper()
	for _, name := range d.good {
		d.check(name)
	}
	verifyTarget(d.t, d.root, d.target, d.inReadOnly())
	for name, want := range d.failed {
		found := false
		for _, f := range st.Failures {
			if f.Path == d.path(name) {
				found = true
				if f.Stage == "" || !strings.Contains(strings.ToLower(f.Message), strings.ToLower(want)) || f.Cycles < 10 {
					d.t.Errorf("failure of %s: want %q, have %+v", name, want, f)
				}
			}
		}
		if !found {
			d.t.Errorf("%s is not among the failures: %+v", name, st.Failures)
		}
	}
	if st.DatabasesFailed != len(d.failed) || st.NotDatabases != 1 || st.DatabasesEmpty != 2 {
		d.t.Errorf("databases_failed %d (want %d), not_databases %d (want 1), databases_empty %d (want 2); failures %+v",
			st.DatabasesFailed, len(d.failed), st.NotDatabases, st.DatabasesEmpty, st.Failures)
	}
	want := len(d.good) + len(d.failed) + 3 + 3
	if st.Databases != want {
		d.t.Errorf("databases %d, want %d", st.Databases, want)
	}
}

// Point 3: ten cycles over databases in every state change nothing of them.
func Test03NothingDisturbed(t *testing.T) {
	t.Parallel()
	o := &one{t: t, root: openTemp(t), target: openTemp(t)}
	state := openTemp(t)
	o.c = settings{pattern: seedPattern(o.root), interval: "1s", target: fileTarget(o.target), keys: []string{"state_dir: " + state}}
	opts := []option{}
	asRoot := os.Geteuid() == 0
	if asRoot { // then the daemon is somebody else, to whom mode 000 means something
		must(t, os.Chown(o.target, 65534, 65534))
		must(t, os.Chown(state, 65534, 65534))
		opts = append(opts, asNobody())
	}

	// A database that the target has, and that is then cut to nothing beside its WAL.
	cutPath := o.make("was-a-database", "PRAGMA journal_mode=WAL")
	once(t, o.c, opts...)
	o.check("was-a-database")
	backup, _ := newest(t, o.target, o.key("was-a-database"))
	leftBehind(t, cutPath, "WAL")
	must(t, os.Truncate(cutPath, 0))

	d := everyState(t, o, false)
	d.failed["was-a-database"] = "empty"
	before := photo(t, o.root)
	p := replicate(t, o.c, opts...)
	st := p.waitCycles(10, 60*time.Second)
	samePhoto(t, before, photo(t, o.root), nil)
	d.verify(st)
	if img, _ := newest(t, o.target, o.key("was-a-database")); !bytes.Equal(img, backup) {
		t.Error("the backup of a database that is now empty was replaced")
	}
	log := p.output()
	if !strings.Contains(log, o.path("text")) {
		t.Error("the file that is no database is not named in the log")
	}
	for name := range d.failed {
		n := 0
		for line := range strings.SplitSeq(log, "\n") {
			if strings.Contains(line, o.path(name)) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("the failing %s is in %d lines of the log, want one", name, n)
		}
	}
	p.stop()
	samePhoto(t, before, photo(t, o.root), nil)
	// Nobody lost a lock: the exclusive one still works, and commits.
	d.w.exec(o.path("exclusive"), "COMMIT")
	d.w.quit()
	once(t, settings{pattern: o.c.pattern, target: o.c.target, keys: o.c.keys}.partly(), opts...)
	o.check("exclusive")
}

// partly marks a configuration whose cycles may have failures; see once.
func (c settings) partly() settings { c.mayFail = true; return c }

// The same under a read-only bind mount of the whole tree.
func Test03ReadOnlyMount(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	o := newOne(t, "state_dir: "+t.TempDir())
	o.c.interval = "1s"
	d := everyState(t, o, true)
	before := photo(t, o.root)
	script := fmt.Sprintf(`mount --bind %[1]s %[1]s && mount -o remount,ro,bind %[1]s && ! touch %[1]s/x 2>/dev/null`, quote(o.root))
	p := replicate(t, o.c, inOwnMounts(script))
	st := p.waitCycles(10, 60*time.Second)
	samePhoto(t, before, photo(t, o.root), nil)
	d.verify(st)
	p.stop()
	samePhoto(t, before, photo(t, o.root), nil)
	d.w.quit()
}

// Writers in rollback mode with busy_timeout=0 never meet us; one without a pause
// is backed up all the same; and every image on the way is one committed state.
func Test03NoBusy(t *testing.T) {
	// Not in parallel: beside many others a writer without a pause is met three times in a
	// row more often, and then read under the SHARED lock, as documented.
	commits := envInt("BUSY_COMMITS", 400)
	o := newOne(t, "snapshot_window: 0s", "retention: 0s")
	o.c.interval = "1s"
	w := newWriter(t)
	modes := []string{"DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"}
	for _, m := range modes {
		p := o.make("paced-" + m)
		w.open(p, m)
		w.exec(p, seqSchema)
	}
	hot := newWriter(t)
	hots := []string{"hot-DELETE", "hot-OFF", "hot-WAL"}
	for _, name := range hots {
		p := o.make(name)
		hot.open(p, strings.TrimPrefix(name, "hot-"), "PRAGMA synchronous=OFF", "PRAGMA busy_timeout=5000")
		hot.exec(p, seqSchema)
	}
	d := replicate(t, o.c)
	for _, m := range modes {
		w.do(ask{Op: "loop", ID: o.path("paced-" + m), N: commits, MinMS: 50, MaxMS: 150})
	}
	for _, name := range hots {
		hot.do(ask{Op: "loop", ID: o.path(name), N: 40000})
	}
	// Meanwhile every image that appears is looked at once.
	seen := map[string]int64{}
	images := 0
	look := func(name string) {
		for _, obj := range objects(t, o.target, o.key(name)) {
			if _, ok := seen[obj]; ok {
				continue
			}
			img, _, err := decodeObject(must1[[]byte](t)(os.ReadFile(obj)))
			must(t, err)
			tmp := filepath.Join(t.TempDir(), "x.db")
			must(t, os.WriteFile(tmp, img, 0o600))
			n, err := checkSeq(tmp)
			if err != nil && !strings.Contains(err.Error(), "no such table") {
				t.Errorf("%s: %v", obj, err)
			}
			os.Remove(tmp)
			seen[obj] = n
			images++
		}
	}
	hotSeen := func(name string) int {
		n := 0
		for obj, at := range seen {
			if at > 0 && strings.Contains(obj, "/"+name+"/") {
				n++
			}
		}
		return n
	}
	start := time.Now()
	for cycle := 0; ; {
		st := d.wait(30*time.Second, "the next cycle", func(s stats) bool { return s.Cycles > cycle })
		cycle = st.Cycles
		done := true
		for _, m := range modes {
			look("paced-" + m)
			done = done && w.do(ask{Op: "progress", ID: o.path("paced-" + m)}).Commits >= int64(commits)
		}
		for _, name := range hots {
			look(name)
		}
		if done || time.Since(start) > 4*time.Minute {
			break
		}
	}
	for _, m := range modes {
		r := w.do(ask{Op: "wait", ID: o.path("paced-" + m)})
		if r.Busy != 0 || r.Commits != int64(commits) || r.Other != "" {
			t.Errorf("journal_mode=%s: %d commits, %d SQLITE_BUSY, %s", m, r.Commits, r.Busy, r.Other)
		}
	}
	for _, name := range hots {
		r := hot.do(ask{Op: "stop", ID: o.path(name)})
		if r.Other != "" || r.Busy != 0 || hotSeen(name) < 5 {
			t.Errorf("%s: %d commits, %d SQLITE_BUSY, %s; %d images taken while it wrote, want at least 5", name, r.Commits, r.Busy, r.Other, hotSeen(name))
		}
		t.Logf("%s: %d commits without pause, %d images", name, r.Commits, hotSeen(name))
	}
	d.waitCycles(2, 30*time.Second)
	for _, m := range modes {
		o.check("paced-" + m)
	}
	for _, name := range hots {
		o.check(name)
	}
	t.Logf("%d images looked at", images)
	d.stop()
	w.quit()
	hot.quit()
}

// A thousand WALs and a thousand hot journals of writers killed at random: every
// image is what SQLite's own recovery makes of the same files.
func Test03KilledWriters(t *testing.T) {
	t.Parallel()
	const want, batch = 1000, 50
	root, target := t.TempDir(), t.TempDir()
	dir := filepath.Join(root, "p/databases/d/branches/b/tenants")
	must(t, os.MkdirAll(dir, 0o755))
	seed := filepath.Join(t.TempDir(), "seed.db")
	simple(t, seed)
	build(t, seed, seqSchema)
	fill(t, seed, 60)
	seedBytes := must1[[]byte](t)(os.ReadFile(seed))
	var all []string
	wals, hots, rounds := 0, 0, 0
	for ; (wals < want || hots < want) && rounds < 200; rounds++ {
		w := newWriter(t)
		var paths, loops []string
		for i := range batch {
			p := filepath.Join(dir, fmt.Sprintf("k%03d-%02d.db", rounds, i))
			must(t, os.WriteFile(p, seedBytes, 0o644))
			paths = append(paths, p)
			mode := "WAL"
			if wals >= want || (hots < want && rounds%2 == 0) {
				mode = []string{"DELETE", "PERSIST", "TRUNCATE"}[i%3]
			}
			w.open(p, mode, fmt.Sprintf("PRAGMA cache_size=%d", 2+rand.IntN(20)), fmt.Sprintf("PRAGMA wal_autocheckpoint=%d", rand.IntN(3)*15),
				"PRAGMA synchronous="+[]string{"OFF", "OFF", "OFF", "OFF", "NORMAL", "FULL"}[rand.IntN(6)])
			if mode != "WAL" && i%2 == 0 { // half of them at a known place, the rest wherever they are
				w.exec(p, "UPDATE head SET n=n+1; INSERT INTO seq SELECT n, zeroblob(90) FROM head")
				w.exec(p, spill)
				continue
			}
			loops = append(loops, p)
		}
		w.do(ask{Op: "loop", ID: loops[0], IDs: loops[1:], Spill: true})
		busy := func() int64 { return w.do(ask{Op: "progress", ID: loops[0]}).Commits }
		goal := int64(1 + rand.IntN(4))
		waitFor(t, 20*time.Second, "the writers to get going", func() bool { return busy() >= goal })
		w.kill()
		for _, p := range paths {
			if info, err := os.Stat(p + "-wal"); err == nil && info.Size() > 32 {
				wals++
			} else if hotJournal(p + "-journal") {
				hots++
			}
		}
		all = append(all, paths...)
	}
	t.Logf("%d databases, %d with a WAL, %d with a hot journal", len(all), wals, hots)
	if wals < want || hots < want {
		t.Fatalf("only %d WALs and %d hot journals in %d rounds", wals, hots, rounds)
	}
	before := photo(t, root)
	state := t.TempDir()
	once(t, settings{pattern: seedPattern(root), target: fileTarget(target), keys: []string{"state_dir: " + state}})
	samePhoto(t, before, photo(t, root), nil)
	verifyTarget(t, root, target, all)
}

var journalMagic = []byte{0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7}

func hotJournal(path string) bool {
	b, err := os.ReadFile(path)
	return err == nil && len(b) > 512 && bytes.Equal(b[:8], journalMagic)
}

// A journal that names a foreign file as its super-journal: the file decides, and
// nothing is done to it.
func Test03SuperJournal(t *testing.T) {
	t.Parallel()
	o := newOne(t, "state_dir: "+t.TempDir())
	foreign := filepath.Join(t.TempDir(), "somebody's file")
	must(t, os.WriteFile(foreign, []byte("precious\x00"), 0o600))
	missing := o.path("missing") + "-mj0123ABCD" // as SQLite names one of a multi-file commit
	leftBehind(t, o.path("exists"), "DELETE")
	leftBehind(t, o.path("missing"), "DELETE")
	rolledBack := sqliteImage(t, o.path("exists"))
	asIs := cut(must1[[]byte](t)(os.ReadFile(o.path("missing"))))
	superJournal(t, o.path("exists")+"-journal", foreign)
	superJournal(t, o.path("missing")+"-journal", missing)
	before := photo(t, o.root)
	beforeForeign := photo(t, filepath.Dir(foreign))
	r := litestream(t, []string{"replicate", "-once", "-config", o.c.write(t, freePort(t))})
	samePhoto(t, before, photo(t, o.root), nil)
	samePhoto(t, beforeForeign, photo(t, filepath.Dir(foreign)), nil)
	if exists(missing) {
		t.Error("the missing file was made")
	}
	if r.code != 0 {
		t.Fatalf("exit %d: %s", r.code, r.all())
	}
	img, _ := newest(t, o.target, o.key("exists"))
	if err := compareBytes(rolledBack, img); err != nil {
		t.Errorf("super-journal exists: want the rolled back state: %v", err)
	}
	// Half of a transaction in the file and a void journal: what SQLite would read.
	img, _ = newest(t, o.target, o.key("missing"))
	if err := compareBytes(asIs, img); err != nil {
		t.Errorf("super-journal missing: want the file as it is: %v", err)
	}
}

// superJournal appends the record that names a super-journal to a hot journal.
func superJournal(t testing.TB, journal, name string) {
	t.Helper()
	if !hotJournal(journal) {
		t.Fatalf("%s is not hot", journal)
	}
	b := must1[[]byte](t)(os.ReadFile(journal))
	var sum uint32
	for _, c := range []byte(name) {
		sum += uint32(int32(int8(c)))
	}
	b = binary.BigEndian.AppendUint32(b, 0x40000000/4096+1)
	b = append(b, name...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	b = binary.BigEndian.AppendUint32(b, sum)
	b = append(b, journalMagic...)
	must(t, os.WriteFile(journal, b, 0o644))
}

// Symbolic links that come and go in place of databases and of directories, while
// cycles run: nothing behind them is ever read.
func Test03LinksSwappedIn(t *testing.T) {
	t.Parallel()
	o := newOne(t, "state_dir: "+t.TempDir(), "snapshot_window: 0s", "retention: 0s")
	o.c.interval = "1s"
	secretDir := filepath.Join(t.TempDir(), "secret")
	secret := filepath.Join(secretDir, "s00.db")
	const marker = "THE-SECRET-OF-SOMEBODY-ELSE"
	for i := range 40 {
		name := fmt.Sprintf("s%02d", i)
		simple(t, o.path(name))
		simple(t, filepath.Join(secretDir, name+".db"))
		build(t, filepath.Join(secretDir, name+".db"), "INSERT INTO t(v) VALUES('"+marker+"')")
	}
	tenants := filepath.Dir(o.path("x"))
	var stop atomic.Bool
	done := make(chan int)
	go func() {
		swaps := 0
		for i := 0; !stop.Load(); i++ {
			p := o.path(fmt.Sprintf("s%02d", i%40))
			away := p + ".away"
			if i%7 == 0 { // the whole directory
				p, away = tenants, tenants+".away"
			}
			if os.Rename(p, away) != nil {
				break
			}
			to := secret
			if p == tenants {
				to = secretDir
			}
			_ = os.Symlink(to, p)
			_ = os.Remove(p)
			if p != tenants { // seen as changed, to be read
				now := time.Now()
				_ = os.Chtimes(away, now, now)
			}
			if os.Rename(away, p) != nil {
				break
			}
			swaps++
		}
		done <- swaps
	}()
	d := replicate(t, o.c)
	d.waitCycles(8, 60*time.Second)
	stop.Store(true)
	t.Logf("%d swaps", <-done)
	d.waitCycles(2, 30*time.Second)
	d.stop()
	n := 0
	must(t, filepath.Walk(o.target, func(path string, info os.FileInfo, err error) error {
		if err == nil && strings.HasSuffix(path, ".db.lz4") {
			img, _, err := decodeObject(must1[[]byte](t)(os.ReadFile(path)))
			must(t, err)
			if bytes.Contains(img, []byte(marker)) {
				t.Errorf("%s holds what a link led to", path)
			}
			n++
		}
		return err
	}))
	if n < 40 {
		t.Errorf("%d objects", n)
	}
	for i := range 40 {
		o.check(fmt.Sprintf("s%02d", i))
	}
}
