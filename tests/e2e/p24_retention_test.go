package e2e

import (
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sweepStats is what /stats says of sweeps.
type sweepStats struct {
	LastSweep *string `json:"last_sweep"`
	Sweep     struct {
		Objects, Bytes, List, Delete int64
		Seconds                      float64
		CostUSD                      float64 `json:"cost_usd"`
		Failed                       bool
	} `json:"sweep"`
	ObjectsDeleted      int `json:"objects_deleted"`
	DatabasesReconciled int `json:"databases_reconciled"`
	UploadsAborted      int `json:"uploads_aborted"`
}

// kept is what retention leaves of the objects of a target: those of foreign names,
// those of a name not before the limit, and the newest two of each database.
func kept(keys map[string]bool, foreign map[string]bool, limit time.Time) map[string]bool {
	out := map[string]bool{}
	byDatabase := map[string][]string{}
	for k := range keys {
		if foreign[k] {
			out[k] = true
		} else {
			byDatabase[filepath.Dir(k)] = append(byDatabase[filepath.Dir(k)], k)
		}
	}
	for _, objects := range byDatabase {
		slices.Sort(objects)
		for i, k := range objects {
			at, err := parseObject(filepath.Base(k))
			if err != nil {
				panic(err)
			}
			if i >= len(objects)-2 || !at.Before(limit) {
				out[k] = true
			}
		}
	}
	return out
}

// Point 4: sixty days of a fleet, of which a quarter never changes.
func Test24Retention(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := filepath.Join(t.TempDir(), "data")
	const n, still = 200, 50
	paths := makeFleet(t, root, n)
	c := settings{pattern: seedPattern(root), target: s.target(s.resign(t)), keys: []string{"state_dir: " + t.TempDir(), "retention: 720h"}}
	clock := newClock(t)
	// Days have a minute more than 24 hours, and begin in the middle of an hour: so what is
	// older than 30 days is never a matter of seconds.
	const oneDay = 24*time.Hour + time.Minute
	day0 := time.Now().Add(24 * time.Hour).Truncate(time.Hour).Add(30 * time.Minute)

	foreign := map[string]bool{}
	old := "20200101T000000Z.db.lz4"
	own := keyOf(root, paths[0])
	for _, k := range []string{"readme.txt", own + "/notes.txt", own + "/" + old + ".bak", own + "/x" + old, own + "/deeper/" + old, "a/b/" + old, old, "%41/b/c/d/" + old, "a/b/c/%2e%2e/" + old} {
		foreign[k] = true
	}
	changed := func(day int) (out []string) {
		for i, p := range paths[:n-still] {
			if i%3 == day%3 || day == 0 {
				out = append(out, p)
			}
		}
		return out
	}
	var removedInAll, requests int
	for day := range 61 {
		now := day0.Add(time.Duration(day) * oneDay)
		clock.set(now)
		if day > 0 {
			for _, p := range changed(day) {
				change(t, p)
			}
		}
		before := allKeys(t, s.dir())
		mark := s.mark()
		r := litestream(t, []string{"replicate", "-once", "-enforce-retention", "-config", (settings{pattern: c.pattern, target: c.target, keys: c.keys, noHTTP: true}).write(t, 0)}, clock.env())
		if r.code != 0 {
			t.Fatalf("day %d: exit %d\n%s", day, r.code, r.all())
		}
		if day == 0 {
			for k := range foreign {
				s.put(k, []byte("somebody else's"))
			}
			continue
		}
		after := allKeys(t, s.dir())
		want := kept(before, foreign, now.Add(-720*time.Hour))
		removed := 0
		for k := range before {
			switch {
			case !after[k] && want[k]:
				t.Errorf("day %d: %s was removed", day, k)
			case after[k] && !want[k]:
				t.Errorf("day %d: %s is still there", day, k)
			case !after[k]:
				removed++
			}
		}
		ops := s.operations(mark)
		deletes := (removed + 999) / 1000
		if ops["ListObjectsV2"] != pages(len(before)) || ops["DeleteObjects"] != deletes || ops["DeleteObject"] != 0 || ops["GetObject"] != 0 || ops["ListMultipartUploads"] > 1 {
			t.Errorf("day %d: %d objects, %d of them removed: the server counts %v, want %d LISTs and %d DELETEs", day, len(before), removed, ops, pages(len(before)), deletes)
		}
		if got := len(after) - len(before) + removed; got != len(changed(day)) || ops["PutObject"] != len(changed(day)) {
			t.Errorf("day %d: %d databases changed: %d objects more, the server counts %v", day, len(changed(day)), got, ops)
		}
		if day < 30 && removed != 0 || day == 45 && removed == 0 {
			t.Errorf("day %d: %d removed", day, removed)
		}
		removedInAll += removed
		requests += deletes
		if t.Failed() {
			break
		}
	}
	t.Logf("%d objects removed in %d requests; %d are left", removedInAll, requests, len(allKeys(t, s.dir())))
	for k := range foreign {
		if !exists(filepath.Join(s.dir(), k)) {
			t.Errorf("%s, which is not ours, has gone", k)
		}
	}
	for i, p := range paths {
		objs := objects(t, s.dir(), keyOf(root, p))
		if i >= n-still {
			if len(objs) != 1 { // it never had a second one
				t.Errorf("%q never changed and has %d objects", p, len(objs))
			}
		} else if len(objs) < 2 {
			t.Errorf("%q has %d objects", p, len(objs))
		}
	}
	verifyTarget(t, root, s.dir(), paths)

	// The daemon: a sweep a day, more than a thousand objects removed in one, and what
	// /stats says of it. Databases without a backup for long are no matter.
	big := keyOf(root, paths[n-1])
	img := sqliteImage(t, paths[n-1])
	for i := range 2300 {
		at := day0.Add(-time.Duration(i+1) * time.Hour)
		s.put(big+"/"+objectAt(at.Truncate(time.Hour)), forge(paths[n-1], img, at))
	}
	c.interval = "1s"
	clock.set(day0.Add(61 * oneDay))
	before := allKeys(t, s.dir())
	want := kept(before, foreign, day0.Add(61*oneDay-720*time.Hour))
	mark := s.mark()
	d := replicate(t, c, clock.env())
	var st sweepStats
	sweeps := func() sweepStats {
		var st sweepStats
		must(t, d.json("/stats", &st))
		return st
	}
	waitFor(t, 60*time.Second, "a sweep", func() bool { st = sweeps(); return st.Sweep.Objects > 0 })
	d.waitCycles(1, 20*time.Second)
	after := allKeys(t, s.dir())
	if !maps.Equal(after, want) {
		t.Errorf("%d objects, %d after the sweep, want %d", len(before), len(after), len(want))
	}
	gone := len(before) - len(want)
	ops := s.operations(mark)
	if gone <= 2000 || ops["DeleteObjects"] != (gone+999)/1000 || ops["ListObjectsV2"] != pages(len(before)) {
		t.Errorf("%d of %d removed: the server counts %v", gone, len(before), ops)
	}
	count, size := 0, int64(0)
	for k := range after {
		if !foreign[k] {
			count++
			size += must1[os.FileInfo](t)(os.Stat(filepath.Join(s.dir(), k))).Size()
		}
	}
	st = sweeps()
	if st.LastSweep == nil || st.Sweep.Objects != int64(count) || st.Sweep.Bytes != size || st.Sweep.List != int64(pages(len(before)))+1 ||
		st.Sweep.Delete != int64((gone+999)/1000) || st.Sweep.Failed || st.Sweep.Seconds <= 0 || st.ObjectsDeleted != gone {
		t.Errorf("/stats: %+v, want %d objects of %d bytes, %d deleted", st, count, size, gone)
	}
	// One of the LISTs is for uploads in parts that nobody finished.
	if cost := float64(pages(len(before))+1) * 0.005 / 1000; st.Sweep.CostUSD < cost*0.9 || st.Sweep.CostUSD > cost*1.1 {
		t.Errorf("cost_usd %v, want %v", st.Sweep.CostUSD, cost)
	}
	// No further one until a day has passed.
	d.waitCycles(3, 20*time.Second)
	if again := s.operations(mark); again["ListObjectsV2"] != ops["ListObjectsV2"] {
		t.Errorf("the same day: %v", again)
	}
	first := *st.LastSweep
	clock.set(day0.Add(62 * oneDay))
	waitFor(t, 30*time.Second, "the next day's sweep", func() bool { st = sweeps(); return st.LastSweep != nil && *st.LastSweep != first })
	if st.ObjectsDeleted <= gone {
		t.Errorf("objects_deleted %d after two sweeps, %d after one", st.ObjectsDeleted, gone)
	}
	d.stop()
}

// retention: 0s keeps everything, and so does -once without -enforce-retention.
func Test24NotEnforced(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := filepath.Join(t.TempDir(), "data")
	paths := makeFleet(t, root, 5)
	at := time.Date(2021, 3, 3, 10, 0, 0, 0, time.UTC)
	for _, p := range paths {
		for i := range 5 {
			at := at.Add(time.Duration(i) * 24 * time.Hour)
			s.put(keyOf(root, p)+"/"+objectAt(at), forge(p, sqliteImage(t, p), at))
		}
	}
	state := t.TempDir()
	run := func(retention string, args ...string) (before, after map[string]bool) {
		t.Helper()
		c := settings{pattern: seedPattern(root), target: s.target(s.url()), noHTTP: true, keys: []string{"state_dir: " + state, "retention: " + retention}}
		for _, p := range paths {
			change(t, p)
		}
		before = allKeys(t, s.dir())
		if r := litestream(t, append([]string{"replicate", "-once", "-config", c.write(t, 0)}, args...)); r.code != 0 {
			t.Fatalf("exit %d\n%s", r.code, r.all())
		}
		return before, allKeys(t, s.dir())
	}
	for _, step := range []struct {
		retention string
		args      []string
		removed   int
	}{
		{"24h", nil, 0},
		{"0s", []string{"-enforce-retention"}, 0},
		{"24h", []string{"-enforce-retention"}, 5 * 5}, // seven each by now, two of them recent
	} {
		before, after := run(step.retention, step.args...)
		n := 0
		for k := range before {
			if !after[k] {
				n++
			}
		}
		if n != step.removed {
			t.Errorf("retention %s, %v: %d of %d removed, want %d", step.retention, step.args, n, len(before), step.removed)
		}
	}
	verifyTarget(t, root, s.dir(), paths)
}

// A sweep whose listing fails removes nothing it has not seen, and says so.
func Test24ListingFails(t *testing.T) {
	t.Parallel()
	s, root := startS3(t), filepath.Join(t.TempDir(), "data")
	p := startProxy(t, s.hostPort(), nil)
	paths := makeFleet(t, root, 3)
	c := settings{pattern: seedPattern(root), target: s.target(p.url()), noHTTP: true, mayFail: true, keys: []string{"state_dir: " + t.TempDir(), "retention: 24h"}}
	once(t, c)
	at := time.Date(2021, 3, 3, 10, 0, 0, 0, time.UTC)
	img := sqliteImage(t, paths[0])
	for i := range 1500 {
		at := at.Add(time.Duration(i) * time.Hour)
		s.put(keyOf(root, paths[0])+"/"+objectAt(at), forge(paths[0], img, at))
	}
	lists := 0
	p.set(func(_ int64, r *http.Request) int {
		if r.Method == "GET" && r.URL.Query().Has("list-type") {
			if lists++; lists%2 == 0 {
				return 403
			}
		}
		return 0
	})
	before := allKeys(t, s.dir())
	change(t, paths[1])
	r := litestream(t, []string{"replicate", "-once", "-enforce-retention", "-config", c.write(t, 0)})
	after := allKeys(t, s.dir())
	if r.code == 0 || !strings.Contains(r.all(), "403") && !strings.Contains(strings.ToLower(r.all()), "denied") && !strings.Contains(r.all(), "SlowDown") {
		t.Errorf("exit %d, and the sweep failed\n%s", r.code, r.all())
	}
	newest := slices.Sorted(maps.Keys(before))
	for _, k := range newest {
		if !after[k] && !strings.HasPrefix(k, keyOf(root, paths[0])+"/") {
			t.Errorf("%s has gone", k)
		}
	}
	if n := len(objects(t, s.dir(), keyOf(root, paths[0]))); n < 2 {
		t.Errorf("%d objects are left", n)
	}
	// The backup itself is not held up.
	verifyTarget(t, root, s.dir(), paths)
	p.set(nil)
	if r := litestream(t, []string{"replicate", "-once", "-enforce-retention", "-config", c.write(t, 0)}); r.code != 0 {
		t.Errorf("exit %d\n%s", r.code, r.all())
	}
	if n := len(objects(t, s.dir(), keyOf(root, paths[0]))); n != 2 {
		t.Errorf("%d objects are left, want 2", n)
	}
}

// A clock that is years ahead, or years back, deletes nothing; and what is on the disk
// of a machine that has lost its state is not what decides.
func Test24Clock(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := filepath.Join(t.TempDir(), "data")
	paths := makeFleet(t, root, 4)
	clock := newClock(t)
	state := t.TempDir()
	c := settings{pattern: seedPattern(root), target: s.target(s.resign(t)), noHTTP: true, mayFail: true, keys: []string{"state_dir: " + state, "retention: 720h", "snapshot_window: 1h"}}
	run := func(at time.Duration) result {
		t.Helper()
		clock.set(time.Now().Add(at))
		return litestream(t, []string{"replicate", "-once", "-enforce-retention", "-config", c.write(t, 0)}, clock.env())
	}
	for i := range 6 {
		for _, p := range paths {
			change(t, p)
		}
		if r := run(time.Duration(i)*2*time.Hour + time.Minute); r.code != 0 {
			t.Fatalf("exit %d\n%s", r.code, r.all())
		}
	}
	before := allKeys(t, s.dir())
	same := func(what string) {
		t.Helper()
		after := allKeys(t, s.dir())
		for k := range before {
			if !after[k] {
				t.Errorf("%s: %s was removed", what, k)
			}
		}
	}
	r := run(2 * 365 * 24 * time.Hour)
	same("two years ahead")
	if !strings.Contains(r.all(), "year") {
		t.Errorf("two years ahead: no word about it: exit %d\n%s", r.code, r.all())
	}
	// The state is lost on top of that.
	for _, e := range must1[[]os.DirEntry](t)(os.ReadDir(state)) {
		must(t, os.RemoveAll(filepath.Join(state, e.Name())))
	}
	run(24 * time.Hour)
	same("the state lost")
	// Databases that are gone keep their newest two.
	must(t, os.Remove(paths[0]))
	run(50 * 24 * time.Hour)
	run(80 * 24 * time.Hour)
	for _, p := range paths {
		if n := len(objects(t, s.dir(), keyOf(root, p))); n < 2 || p == paths[0] && n != 2 {
			t.Errorf("%q has %d objects", p, n)
		}
	}
	if len(allKeys(t, s.dir())) >= len(before) {
		t.Error("nothing was removed in 80 days: the test shows nothing")
	}
}
