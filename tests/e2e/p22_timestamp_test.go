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

// Point 2: a point in time is found by the snapshot time inside the objects, not by
// their names and not by the bucket's times; by both commands alike.
func Test22Timestamp(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root, state := filepath.Join(t.TempDir(), "data"), t.TempDir()
	c := settings{pattern: seedPattern(root), target: s.target(s.resign(t)), keys: []string{"state_dir: " + state, "retention: 0s", "snapshot_window: 1h"}}
	clock := newClock(t)
	hour := time.Now().Add(48 * time.Hour).Truncate(time.Hour)
	paths := makeFleet(t, root, 12)
	late := paths[11] // appears last
	must(t, os.Rename(late, late+".later"))

	// Two objects get names of their own; the third of a window and the fourth of the
	// same one share its name, and so do the fifth and sixth.
	type state0 struct {
		at     time.Time
		images map[string][]byte
	}
	var history []state0
	for i, at := range []time.Duration{1*time.Hour + 10*time.Minute, 2*time.Hour + 10*time.Minute, 3*time.Hour + 15*time.Minute,
		3*time.Hour + 45*time.Minute, 5*time.Hour + 20*time.Minute, 5*time.Hour + 40*time.Minute} {
		if i == 5 {
			must(t, os.Rename(late+".later", late))
		}
		for _, p := range paths {
			if i == 5 || p != late {
				build(t, p, fmt.Sprintf("UPDATE t SET tag='state %d' WHERE id=1", i))
			}
		}
		clock.set(hour.Add(at))
		once(t, c, clock.env())
		now := state0{images: map[string][]byte{}}
		for _, p := range paths {
			if i < 5 && p == late {
				continue
			}
			img, tr := newest(t, s.dir(), keyOf(root, p))
			if err := compareBytes(sqliteImage(t, p), img); err != nil {
				t.Fatalf("state %d of %q is not in the target: %v", i, p, err)
			}
			now.images[p] = img
			if got := must1[time.Time](t)(time.Parse(time.RFC3339Nano, tr.SnapshotTime)); got.After(now.at) {
				now.at = got // the last snapshot of this cycle
			}
		}
		history = append(history, now)
	}
	one := paths[4]
	objs := objects(t, s.dir(), keyOf(root, one))
	if len(objs) != 4 {
		t.Fatalf("objects %v, want four", objs)
	}
	// Snapshot times of one database, by what the objects say.
	var snaps []time.Time
	for _, o := range objs {
		_, tr, err := decodeObject(must1[[]byte](t)(os.ReadFile(o)))
		must(t, err)
		snaps = append(snaps, must1[time.Time](t)(time.Parse(time.RFC3339Nano, tr.SnapshotTime)))
	}
	if name := strings.TrimSuffix(filepath.Base(objs[2]), ".db.lz4"); name != hour.Add(3*time.Hour).UTC().Format("20060102T150405Z") {
		t.Fatalf("the third object is called %s: the test shows nothing", name)
	}
	at := func(d time.Duration) string { return hour.Add(d).UTC().Format(time.RFC3339) }
	type query struct {
		what string
		at   string
		want int // the state, -1: none
	}
	queries := []query{
		{"between the first two", at(2 * time.Hour), 0},
		{"exactly on the first", snaps[0].Format(time.RFC3339Nano), 0},
		{"exactly on the second", snaps[1].Format(time.RFC3339Nano), 1},
		{"a moment before the second", snaps[1].Add(-time.Nanosecond).Format(time.RFC3339Nano), 0},
		{"in a window whose object is younger", at(3*time.Hour + 30*time.Minute), 1},
		{"exactly on the replaced one", snaps[2].Format(time.RFC3339Nano), 3},
		{"a moment before it", snaps[2].Add(-time.Nanosecond).Format(time.RFC3339Nano), 1},
		{"in the next window, before its object", at(5*time.Hour + 10*time.Minute), 3},
		{"in a window without objects", at(4*time.Hour + 30*time.Minute), 3},
		{"long after", at(900 * time.Hour), 5},
		{"in another zone", hour.Add(4 * time.Hour).In(time.FixedZone("", 5*3600+1800)).Format(time.RFC3339), 3},
		{"just before the first", snaps[0].Add(-time.Nanosecond).Format(time.RFC3339Nano), -1},
		{"years before", "2001-01-01T00:00:00Z", -1},
	}
	ask := func(what string, target string) {
		t.Helper()
		c := c
		c.target = target
		config := c.write(t, 0)
		for _, q := range queries {
			out := t.TempDir()
			file := out + strings.TrimPrefix(one, root)
			a := multiDB(t, config, "restore", "-match", one, "-timestamp", q.at, "-output-dir", out)
			single := filepath.Join(t.TempDir(), "x.db")
			r := tryRestore(t, config, one, single, "-timestamp", q.at)
			if q.want < 0 {
				earliest := snaps[0].UTC().Format("2006-01-02T15:04:05")
				if r.code != 1 || !strings.Contains(r.stderr, earliest) || exists(single) {
					t.Errorf("%s, %s: restore: exit %d, want 1 and %s in: %s", what, q.what, r.code, earliest, r.all())
				}
				if a.code != 1 || len(a.rows) != 1 || a.rows[0].Status != "failed" || !strings.Contains(a.rows[0].Error, earliest) || exists(file) {
					t.Errorf("%s, %s: multi-db restore: exit %d, want 1 and %s in: %+v", what, q.what, a.code, earliest, a.rows)
				}
				continue
			}
			if r.code != 0 || a.code != 0 {
				t.Errorf("%s, %s: exit %d and %d\n%s\n%s", what, q.what, r.code, a.code, r.all(), a.all())
				continue
			}
			for _, f := range []string{single, file} {
				if err := compareImage(history[q.want].images[one], f); err != nil {
					t.Errorf("%s, %s: %s: %v, it says %q, want state %d", what, q.what, f, err, strings.TrimSpace(queryString(t, f, "SELECT tag FROM t WHERE id=1")), q.want)
				}
			}
		}
		// The whole fleet at one moment: a database that was not there yet is a failure
		// that names its earliest; all others come as they were.
		out := t.TempDir()
		a := multiDB(t, config, "restore", "-timestamp", history[1].at.Format(time.RFC3339Nano), "-output-dir", out)
		if a.code != 1 || a.num("restored") != 11 || a.num("failed") != 1 || a.row(late).Status != "failed" ||
			!strings.Contains(a.row(late).Error, history[5].at.UTC().Format("2006-01-02T15:04")) {
			t.Errorf("%s: the fleet: exit %d, %v, %+v", what, a.code, a.summary, a.row(late))
		}
		for p, img := range history[1].images {
			if err := compareImage(img, out+strings.TrimPrefix(p, root)); err != nil {
				t.Errorf("%s: the fleet: %q: %v", what, p, err)
			}
		}
		if exists(out + strings.TrimPrefix(late, root)) {
			t.Errorf("%s: a database that was not there yet was restored", what)
		}
	}
	ask("as uploaded", s.target(s.url()))

	// The same objects in another bucket, all of them modified just now.
	copied := startS3(t)
	if out, err := exec.Command("cp", "-r", s.dir()+"/.", copied.dir()).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	ask("copied", copied.target(copied.url()))
}
