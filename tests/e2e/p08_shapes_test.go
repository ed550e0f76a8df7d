package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Point 8: every shape of database is restored exactly.
func Test08Shapes(t *testing.T) {
	t.Parallel()
	o := newOne(t)
	w := newWriter(t)
	var names []string
	rows := func(t testing.TB, p string) { fill(t, p, 150) }
	for _, wal := range []bool{false, true} {
		mode, suffix := "DELETE", ""
		if wal {
			mode, suffix = "WAL", "-wal"
		}
		add := func(name string, setup ...string) {
			name += suffix
			p := o.make(name, append(setup, "PRAGMA journal_mode="+mode)...)
			rows(t, p)
			names = append(names, name)
			if wal { // with pages of it in the WAL
				w.open(p, "", "PRAGMA wal_autocheckpoint=0")
				w.exec(p, "UPDATE t SET v=hex(randomblob(100)) WHERE id%3=0")
			}
		}
		for page := 512; page <= 65536; page *= 2 {
			add(fmt.Sprintf("page-%d", page), fmt.Sprintf("PRAGMA page_size=%d", page))
		}
		add("auto-vacuum-full", "PRAGMA auto_vacuum=FULL")
		add("auto-vacuum-incremental", "PRAGMA auto_vacuum=INCREMENTAL")
		add("utf16le", "PRAGMA encoding='UTF-16le'")
		add("utf16be", "PRAGMA encoding='UTF-16be'")
		add("without-rowid", "CREATE TABLE wr(k TEXT PRIMARY KEY, v BLOB) WITHOUT ROWID",
			"INSERT INTO wr WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<500) SELECT hex(randomblob(16)), randomblob(90) FROM c")
		add("secure-delete", "PRAGMA secure_delete=ON")
		add("big-blob", "CREATE TABLE b(x BLOB)", "INSERT INTO b VALUES(randomblob(3000000))")
		add("fts-and-index", "CREATE TABLE d(a,b)", "CREATE INDEX di ON d(b)", "CREATE VIEW dv AS SELECT a FROM d",
			"CREATE TRIGGER dt AFTER INSERT ON d BEGIN UPDATE d SET b=1 WHERE a=new.a; END", "INSERT INTO d VALUES(1,2)")

		// A database without a table: one page.
		name := "empty-schema" + suffix
		build(t, o.path(name), "PRAGMA journal_mode="+mode, "PRAGMA user_version=7")
		names = append(names, name)
		name = "emptied" + suffix
		simple(t, o.path(name), "PRAGMA journal_mode="+mode)
		build(t, o.path(name), "DROP TABLE t", "VACUUM")
		names = append(names, name)
		for _, n := range []int{8, 200, 255} {
			name := fmt.Sprintf("reserved-%d%s", n, suffix)
			cmd := exec.Command("sqlite3", o.path(name), ".filectrl reserve_bytes "+fmt.Sprint(n), "VACUUM", "PRAGMA journal_mode="+mode,
				"CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)", "INSERT INTO t(v) VALUES('x'),('y')", "VACUUM")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("sqlite3: %v: %s", err, out)
			}
			rows(t, o.path(name))
			if b := must1[[]byte](t)(os.ReadFile(o.path(name))); int(b[20]) != n {
				t.Errorf("%s: %d reserved bytes: the test shows nothing", name, b[20])
			}
			names = append(names, name)
		}
	}
	once(t, o.c)
	config := o.c.write(t, 0)
	for _, name := range names {
		o.check(name)
		out := restore(t, config, o.path(name), "-integrity-check", "full")
		sameImage(t, o.path(name), out)
		if err := integrity(out); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.quit()
}

// A database of 1.2 GB, over the lock page at 1 GiB and far over memory_limit, then
// with a WAL of 1 GB: exact, and RSS stays within 200 MB over idle.
func Test08Large(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("1.2 GB")
	}
	o := newOne(t, "memory_limit: 64MB", "snapshot_window: 0s")
	o.c.interval = "1s"
	small := o.make("small")
	d := replicate(t, o.c)
	d.waitSynced(20 * time.Second)
	idle, _ := d.memory()

	big := o.path("big")
	side := filepath.Join(o.root, "side.db") // not where the pattern looks
	build(t, side, "PRAGMA synchronous=OFF", "PRAGMA journal_mode=OFF", "PRAGMA cache_size=-50000",
		"CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)",
		`INSERT INTO t WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<1250)
			SELECT i, CASE i%4 WHEN 0 THEN randomblob(1000000) ELSE zeroblob(1000000) END FROM c`)
	if size := must1[os.FileInfo](t)(os.Stat(side)).Size(); size < 1200e6 {
		t.Fatalf("%d bytes", size)
	}
	must(t, os.Rename(side, big))
	st := d.wait(120*time.Second, "the large database", func(s stats) bool { return s.Databases == 2 && s.Unsynced == 0 && s.UploadsSuccess >= 2 })
	_, peak := d.memory()
	t.Logf("1.2 GB: idle %d MB, peak %d MB, cycle %.1f s", idle>>20, peak>>20, st.CycleSeconds)
	if peak > idle+200<<20 {
		t.Errorf("peak RSS %d MB, idle %d MB", peak>>20, idle>>20)
	}
	config := o.c.write(t, 0)
	sameBig := func(want string) {
		t.Helper()
		out := filepath.Join(t.TempDir(), "big.db")
		restoreTo(t, config, big, out)
		if msg, err := exec.Command("cmp", want, out).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, msg)
		}
		os.Remove(out)
	}
	sameBig(big)

	// A WAL of 1 GB beside it, held open.
	w := newWriter(t)
	w.open(big, "WAL", "PRAGMA synchronous=OFF", "PRAGMA wal_autocheckpoint=0")
	w.exec(big, "UPDATE t SET v=CAST(printf('%.1000000c','b') AS BLOB) WHERE id<=1080")
	if size := must1[os.FileInfo](t)(os.Stat(big + "-wal")).Size(); size < 1<<30 {
		t.Errorf("a WAL of %d bytes: the test shows nothing", size)
	}
	st = d.waitCycles(1, 120*time.Second)
	st = d.wait(120*time.Second, "the WAL of 1 GB", func(s stats) bool { return s.Unsynced == 0 })
	_, peak = d.memory()
	t.Logf("WAL of 1 GB: peak %d MB, cycle %.1f s", peak>>20, st.CycleSeconds)
	if peak > idle+200<<20 {
		t.Errorf("peak RSS %d MB with a WAL of 1 GB, idle %d MB", peak>>20, idle>>20)
	}
	// The oracle: SQLite's own checkpoint, in place, now that we are done.
	d.stop()
	w.exec(big, "PRAGMA wal_checkpoint(TRUNCATE)")
	w.quit()
	sameBig(big)
	if !exists(small) || strings.Contains(d.output(), "level=ERROR") {
		t.Error("errors in the log")
	}
}
