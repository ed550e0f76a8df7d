package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// one is a small fleet of named databases in the seed's layout with a directory as
// its target, stepped with replicate -once.
type one struct {
	t      testing.TB
	root   string
	target string
	c      settings
}

func newOne(t testing.TB, keys ...string) *one {
	t.Helper()
	o := &one{t: t, root: t.TempDir(), target: t.TempDir()}
	o.c = settings{pattern: seedPattern(o.root), target: fileTarget(o.target), keys: keys}
	return o
}

func (o *one) path(name string) string {
	return filepath.Join(o.root, "p/databases/d/branches/b/tenants", name+".db")
}

func (o *one) key(name string) string { return keyOf(o.root, o.path(name)) }

func (o *one) make(name string, setup ...string) string {
	o.t.Helper()
	simple(o.t, o.path(name), setup...)
	return o.path(name)
}

// check compares the newest object of a database with its files.
func (o *one) check(name string) {
	o.t.Helper()
	img, _ := newest(o.t, o.target, o.key(name))
	if err := compareBytes(sqliteImage(o.t, o.path(name)), img); err != nil {
		o.t.Errorf("%s: %v", name, err)
	}
}

// stamps returns name, inode and mtime of every object of a database.
func (o *one) stamps(name string) string {
	o.t.Helper()
	var b strings.Builder
	for _, p := range objects(o.t, o.target, o.key(name)) {
		info, err := os.Stat(p)
		must(o.t, err)
		fmt.Fprintln(&b, filepath.Base(p), info.ModTime().UnixNano(), inode(info))
	}
	return b.String()
}

// Point 2: every kind of commit is in the target by the second cycle.
func Test02NothingMissed(t *testing.T) {
	t.Parallel()
	type test struct {
		name   string
		setup  []string
		before func(o *one, w *writer, p string) // before the first cycle
		change func(o *one, w *writer, p string)
		after  func(o *one, w *writer, p string) // once it should be in the target
	}
	var sizeBefore int64
	walSize := func(p string) int64 {
		info, err := os.Stat(p + "-wal")
		must(t, err)
		return info.Size()
	}
	tests := []test{
		{
			name: "wal-only",
			before: func(o *one, w *writer, p string) {
				w.open(p, "WAL", "PRAGMA wal_autocheckpoint=0")
				w.exec(p, "INSERT INTO t(v) VALUES('a')")
			},
			change: func(o *one, w *writer, p string) {
				main := must1[os.FileInfo](t)(os.Stat(p)).ModTime()
				w.exec(p, "INSERT INTO t(v) VALUES('b')")
				if !must1[os.FileInfo](t)(os.Stat(p)).ModTime().Equal(main) {
					t.Error("wal-only: the database file was touched: the test shows nothing")
				}
			},
		}, {
			name: "wal-restart-same-size",
			before: func(o *one, w *writer, p string) {
				w.open(p, "WAL", "PRAGMA wal_autocheckpoint=0")
				w.exec(p, "UPDATE t SET v='aaaa' WHERE id=1")
				sizeBefore = walSize(p)
			},
			change: func(o *one, w *writer, p string) {
				w.exec(p, "PRAGMA wal_checkpoint(RESTART)")
				w.exec(p, "UPDATE t SET v='bbbb' WHERE id=1")
				if walSize(p) != sizeBefore {
					t.Errorf("wal-restart: the -wal has %d bytes, had %d: the test shows nothing", walSize(p), sizeBefore)
				}
			},
		}, {
			name: "rollback-same-size",
			change: func(o *one, w *writer, p string) {
				size := must1[os.FileInfo](t)(os.Stat(p)).Size()
				build(t, p, "UPDATE t SET v='uno' WHERE id=1")
				if must1[os.FileInfo](t)(os.Stat(p)).Size() != size {
					t.Error("rollback-same-size: the size has changed: the test shows nothing")
				}
			},
		}, {
			name: "rollback-same-size-and-mtime",
			change: func(o *one, w *writer, p string) {
				at := must1[os.FileInfo](t)(os.Stat(p)).ModTime()
				build(t, p, "UPDATE t SET v='uno' WHERE id=1")
				must(t, os.Chtimes(p, at, at))
			},
		}, {
			name:   "vacuum",
			before: func(o *one, w *writer, p string) { fill(t, p, 200); build(t, p, "DELETE FROM t WHERE id>10") },
			change: func(o *one, w *writer, p string) { build(t, p, "VACUUM") },
		}, {
			name: "renamed-over",
			change: func(o *one, w *writer, p string) {
				old := must1[os.FileInfo](t)(os.Stat(p))
				side := filepath.Join(o.root, "side")
				simple(t, side)
				if must1[os.FileInfo](t)(os.Stat(side)).Size() != old.Size() {
					t.Error("renamed-over: sizes differ")
				}
				must(t, os.Chtimes(side, old.ModTime(), old.ModTime()))
				must(t, os.Rename(side, p))
			},
		}, {
			name: "deleted-and-recreated",
			change: func(o *one, w *writer, p string) {
				must(t, os.Remove(p))
				simple(t, p)
			},
		}, {
			name:  "attached-wal-1",
			setup: []string{"PRAGMA journal_mode=WAL"},
			before: func(o *one, w *writer, p string) {
				o.make("attached-wal-2", "PRAGMA journal_mode=WAL")
				w.open(p, "WAL")
				w.exec(p, fmt.Sprintf("ATTACH %s AS two", quote(o.path("attached-wal-2"))))
			},
			change: func(o *one, w *writer, p string) {
				w.exec(p, "BEGIN; INSERT INTO main.t(v) VALUES('x'); INSERT INTO two.t(v) VALUES('x'); COMMIT")
			},
			after: func(o *one, w *writer, p string) { o.check("attached-wal-2") },
		}, {
			name: "attached-rollback-1",
			before: func(o *one, w *writer, p string) {
				o.make("attached-rollback-2")
				w.open(p, "DELETE")
				w.exec(p, fmt.Sprintf("ATTACH %s AS two", quote(o.path("attached-rollback-2"))))
			},
			change: func(o *one, w *writer, p string) {
				w.exec(p, "BEGIN; INSERT INTO main.t(v) VALUES('x'); INSERT INTO two.t(v) VALUES('x'); COMMIT")
			},
			after: func(o *one, w *writer, p string) { o.check("attached-rollback-2") },
		}, {
			name: "to-wal-and-back",
			change: func(o *one, w *writer, p string) {
				build(t, p, "PRAGMA journal_mode=WAL", "PRAGMA journal_mode=DELETE")
			},
		}, {
			name:   "grown",
			change: func(o *one, w *writer, p string) { fill(t, p, 500) },
		}, {
			name: "exclusive-wal",
			before: func(o *one, w *writer, p string) {
				w.open(p, "WAL", "PRAGMA locking_mode=EXCLUSIVE")
				w.exec(p, "INSERT INTO t(v) VALUES('a')")
			},
			change: func(o *one, w *writer, p string) { w.exec(p, "INSERT INTO t(v) VALUES('b')") },
		}, {
			name: "truncate-journal", setup: []string{"PRAGMA journal_mode=TRUNCATE"},
			before: func(o *one, w *writer, p string) { w.open(p, "TRUNCATE") },
			change: func(o *one, w *writer, p string) { w.exec(p, "UPDATE t SET v='uno' WHERE id=1") },
		}, {
			name:   "persist-journal",
			before: func(o *one, w *writer, p string) { w.open(p, "PERSIST"); w.exec(p, "UPDATE t SET v='x' WHERE id=2") },
			change: func(o *one, w *writer, p string) { w.exec(p, "UPDATE t SET v='uno' WHERE id=1") },
		}, {
			name:   "memory-journal",
			before: func(o *one, w *writer, p string) { w.open(p, "MEMORY") },
			change: func(o *one, w *writer, p string) { w.exec(p, "UPDATE t SET v='uno' WHERE id=1") },
		}, {
			name:   "journal-off",
			before: func(o *one, w *writer, p string) { w.open(p, "OFF") },
			change: func(o *one, w *writer, p string) { w.exec(p, "UPDATE t SET v='uno' WHERE id=1") },
		},
	}
	o := newOne(t)
	w := newWriter(t)
	for _, tt := range tests {
		p := o.make(tt.name, tt.setup...)
		if tt.before != nil {
			tt.before(o, w, p)
		}
	}
	o.make("touched")
	once(t, o.c)
	once(t, o.c)
	was := map[string][]byte{}
	for _, tt := range tests {
		o.check(tt.name)
		was[tt.name], _ = newest(t, o.target, o.key(tt.name))
	}
	touched := o.stamps("touched")
	for _, tt := range tests {
		tt.change(o, w, o.path(tt.name))
	}
	now := time.Now()
	must(t, os.Chtimes(o.path("touched"), now, now))
	created := o.make("created")
	once(t, o.c)
	once(t, o.c)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := *o
			o.t = t
			o.check(tt.name)
			if img, _ := newest(t, o.target, o.key(tt.name)); bytes.Equal(img, was[tt.name]) {
				t.Error("the image is the one before the change")
			}
			if tt.after != nil {
				tt.after(&o, w, o.path(tt.name))
			}
			out := restore(t, o.c.write(t, 0), o.path(tt.name), "-integrity-check", "full")
			sameImage(t, o.path(tt.name), out)
		})
	}
	o.check("created")
	if o.stamps("touched") != touched {
		t.Errorf("a touch without a change was uploaded\nbefore %safter %s", touched, o.stamps("touched"))
	}

	// Deleted: forgotten, never deleted from the target; created again: backed up.
	must(t, os.Remove(created))
	once(t, o.c)
	if len(objects(t, o.target, o.key("created"))) == 0 {
		t.Error("the backup of a deleted database has gone")
	}
	o.make("created")
	once(t, o.c)
	once(t, o.c)
	o.check("created")
	w.quit()
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func fill(t testing.TB, path string, rows int) {
	t.Helper()
	build(t, path, fmt.Sprintf("INSERT INTO t(v) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<%d) SELECT hex(randomblob(200)) FROM c", rows))
}

// Commits right before, during and right after the scan: writers stop at moments
// the daemon knows nothing of, and two cycles later their last commit is there.
func Test02CommitsAroundTheScan(t *testing.T) {
	t.Parallel()
	root, target := t.TempDir(), t.TempDir()
	c := settings{pattern: seedPattern(root), interval: "1s", target: fileTarget(target)}
	paths := makeFleet(t, root, 24)
	w := newWriter(t)
	modes := []string{"WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"}
	for i, p := range paths {
		w.open(p, modes[i%len(modes)], "PRAGMA synchronous=OFF", fmt.Sprintf("PRAGMA wal_autocheckpoint=%d", 10*(i%3)))
		w.exec(p, seqSchema)
	}
	d := replicate(t, c)
	for round := range 6 {
		for _, p := range paths {
			w.do(ask{Op: "loop", ID: p, MinMS: 1, MaxMS: 15})
		}
		from := d.stats().Cycles
		d.wait(20*time.Second, "a cycle beside the writers", func(s stats) bool { return s.Cycles > from })
		// The moment of the stop falls anywhere in the interval.
		at := time.Now().Add(time.Duration(rand.IntN(1000)) * time.Millisecond)
		for _, p := range paths {
			w.do(ask{Op: "progress", ID: p})
		}
		poll(2*time.Second, func() bool { return time.Now().After(at) })
		for _, p := range paths {
			if r := w.do(ask{Op: "stop", ID: p}); r.Other != "" || r.Commits == 0 {
				t.Errorf("round %d: writer of %q: %d commits, %s", round, p, r.Commits, r.Other)
			}
		}
		d.waitCycles(2, 20*time.Second)
		verifyTarget(t, root, target, paths)
		if t.Failed() {
			return
		}
	}
	st := d.stats()
	if st.Unsynced != 0 || st.DatabasesFailed != 0 {
		t.Errorf("nothing is written any more, and yet: %+v", st)
	}
	d.stop()
	w.quit()
}

// Two commits within one tick of the clock: the second one follows the first at
// once, again and again while the cycles go by.
func Test02TwoCommitsInOneTick(t *testing.T) {
	t.Parallel()
	o := newOne(t)
	p := o.make("twice", "PRAGMA synchronous=OFF")
	o.c.interval = "1s"
	d := replicate(t, o.c)
	w := newWriter(t)
	// A writer without any pause may have to wait for one read: DESIGN section 5.
	w.open(p, "DELETE", "PRAGMA synchronous=OFF", "PRAGMA busy_timeout=5000")
	for range 8 {
		from := d.stats().Cycles
		n := 0
		for d.stats().Cycles == from { // up to and across the next scan
			w.exec(p, fmt.Sprintf("UPDATE t SET v='%04d' WHERE id=1", n))
			w.exec(p, fmt.Sprintf("UPDATE t SET v='%04d' WHERE id=1", n+1))
			n += 2
		}
		d.waitCycles(2, 20*time.Second)
		o.check("twice")
	}
	if st := d.stats(); st.DatabasesFailed != 0 {
		t.Errorf("%+v", st)
	}
	d.stop()
	w.quit()
}

// A page count in the header below the file's size: the image is cut to it, and a
// database of a chunk-size writer is the same database.
func Test02ChunkSizePadding(t *testing.T) {
	t.Parallel()
	o := newOne(t)
	p := o.make("padded")
	f := must1[*os.File](t)(os.OpenFile(p, os.O_WRONLY, 0))
	info := must1[os.FileInfo](t)(f.Stat())
	must(t, f.Truncate(info.Size()+1<<20))
	must(t, f.Close())
	once(t, o.c)
	img, tr := newest(t, o.target, o.key("padded"))
	if int64(len(img)) != info.Size() || tr.DatabaseSize != info.Size() {
		t.Errorf("image of %d bytes (trailer %d), want %d", len(img), tr.DatabaseSize, info.Size())
	}
	if int(binary.BigEndian.Uint32(img[28:]))*int(tr.PageSize) != len(img) {
		t.Error("page count and size do not agree")
	}
}

// A second cycle within the second that names the first object: it may take its
// time, but must not say that all is well with the change left behind.
func Test02SameSecond(t *testing.T) {
	t.Parallel()
	for _, window := range []string{"1h", "0s"} {
		o := newOne(t, "snapshot_window: "+window)
		p := o.make("x")
		once(t, o.c)
		for i := range 3 {
			build(t, p, fmt.Sprintf("UPDATE t SET v='change %d' WHERE id=1", i))
			if once(t, o.c.partly()).code == 0 {
				o.check("x")
			}
		}
	}
}
