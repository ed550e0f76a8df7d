package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"
)

// reconciled is a fleet in a bucket that somebody else has been at, and a clock that
// makes sweeps due.
type reconciled struct {
	t     *testing.T
	s     *s3server
	root  string
	state string
	paths []string
	c     settings
	clock *clock
	now   time.Time
	// objects that were damaged here
	damaged []string
}

func newReconciled(t *testing.T, n int) *reconciled {
	t.Helper()
	r := &reconciled{t: t, s: startS3(t), root: filepath.Join(t.TempDir(), "data"), state: t.TempDir(), clock: newClock(t), now: time.Now().Add(time.Hour)}
	r.paths = makeFleet(t, r.root, n)
	r.c = settings{pattern: seedPattern(r.root), target: r.s.target(r.s.resign(t)), keys: []string{"state_dir: " + r.state, "snapshot_window: 1h"}}
	r.clock.set(r.now)
	once(t, r.c, r.clock.env())
	for _, p := range r.paths {
		change(t, p)
	}
	r.cycle()
	return r
}

// cycle runs -once a minute later; tomorrow does a day later, when a sweep is due.
// Both return the databases that were uploaded, by their key.
func (r *reconciled) cycle() []string { r.t.Helper(); return r.run(time.Minute) }
func (r *reconciled) tomorrow() []string {
	r.t.Helper()
	return r.run(25 * time.Hour)
}

func (r *reconciled) run(later time.Duration) []string {
	r.t.Helper()
	r.now = r.now.Add(later)
	r.clock.set(r.now)
	mark := r.s.mark()
	once(r.t, r.c, r.clock.env())
	reqs, _ := r.s.requests(mark)
	var out []string
	for _, q := range reqs {
		if q.op == "s3_PutObject" {
			key, err := url.PathUnescape(q.uri)
			must(r.t, err)
			out = append(out, strings.TrimPrefix(filepath.Dir(key), "/"+bucket+"/"))
		}
	}
	sort.Strings(out)
	return out
}

func (r *reconciled) newestOf(path string) string {
	r.t.Helper()
	objs := objects(r.t, r.s.dir(), keyOf(r.root, path))
	if len(objs) == 0 {
		r.t.Fatalf("no object of %q", path)
	}
	return objs[len(objs)-1]
}

// want wants exactly these databases uploaded by the sweep's cycle and the next, and
// everything right in the target.
func (r *reconciled) want(what string, keys []string) {
	r.t.Helper()
	sort.Strings(keys)
	first := r.tomorrow()
	second := r.cycle()
	all := append(append([]string{}, first...), second...)
	sort.Strings(all)
	if fmt.Sprint(all) != fmt.Sprint(keys) {
		r.t.Errorf("%s: uploaded %d (%d with the sweep) %.400q, want %d: %.400q", what, len(all), len(first), all, len(keys), keys)
	}
	verifyTarget(r.t, r.root, r.s.dir(), r.paths)
	for _, o := range r.damaged { // they stay, as older ones
		must(r.t, os.Remove(o))
	}
	r.damaged = nil
	for _, p := range r.paths {
		ascending(r.t, r.s.dir(), keyOf(r.root, p))
	}
	if rest := r.tomorrow(); len(rest) != 0 {
		r.t.Errorf("%s: uploaded again the day after: %q", what, rest)
	}
}

// Point 5: what somebody removed from the bucket is there again after the next sweep
// and cycle, and nothing else was sent.
func Test25Deleted(t *testing.T) {
	t.Parallel()
	r := newReconciled(t, 120)
	r.want("nothing", nil)
	var keys []string
	for _, i := range rand.Perm(len(r.paths))[:10] {
		must(t, os.Remove(r.newestOf(r.paths[i])))
		keys = append(keys, keyOf(r.root, r.paths[i]))
	}
	r.want("ten newest objects deleted", keys)

	// All objects of some, and the whole bucket.
	keys = nil
	for _, i := range rand.Perm(len(r.paths))[:3] {
		k := keyOf(r.root, r.paths[i])
		must(t, os.RemoveAll(filepath.Join(r.s.dir(), k)))
		keys = append(keys, k)
	}
	r.want("all objects of three deleted", keys)
	entries := must1[[]os.DirEntry](t)(os.ReadDir(r.s.dir()))
	for _, e := range entries {
		must(t, os.RemoveAll(filepath.Join(r.s.dir(), e.Name())))
	}
	keys = nil
	for _, p := range r.paths {
		keys = append(keys, keyOf(r.root, p))
	}
	r.want("the bucket emptied", keys)

	// An older object is nobody's loss.
	for _, p := range r.paths[:5] {
		change(t, p)
	}
	r.tomorrow()
	for _, p := range r.paths[:5] {
		objs := objects(t, r.s.dir(), keyOf(r.root, p))
		must(t, os.Remove(objs[0]))
	}
	r.want("five older objects deleted", nil)
}

// Newer objects that nobody here knows, and a state file of yesterday.
func Test25UnknownNewer(t *testing.T) {
	t.Parallel()
	r := newReconciled(t, 40)
	// Somebody else's newer object of the same name space, by an hour.
	var keys []string
	for _, p := range r.paths[:2] {
		k := keyOf(r.root, p)
		at := r.now.Add(time.Hour).UTC().Truncate(time.Hour)
		r.s.put(k+"/"+objectAt(at), forge(p, smallImage(t, "unknown"), at))
		keys = append(keys, k)
	}
	r.want("two unknown newer ones", keys)
	for _, p := range r.paths[:2] {
		sameImage(t, p, restore(t, r.c.write(t, 0), p))
	}

	// A newest object that is empty, or cut.
	keys = nil
	for i, p := range r.paths[10:12] {
		r.damaged = append(r.damaged, r.newestOf(p))
		must(t, os.Truncate(r.newestOf(p), int64(i)*100))
		keys = append(keys, keyOf(r.root, p))
	}
	r.want("two truncated", keys)

	// The state file goes back a day.
	saved := map[string][]byte{}
	for _, name := range []string{"state.db", "state.db-wal"} {
		if b, err := os.ReadFile(filepath.Join(r.state, name)); err == nil {
			saved[name] = b
		}
	}
	was := map[string]map[string][32]byte{}
	keys = nil
	for _, p := range r.paths[20:30] {
		change(t, p)
		keys = append(keys, keyOf(r.root, p))
	}
	r.run(3 * time.Hour)
	for _, p := range r.paths {
		was[p] = sums(t, r.s.dir(), keyOf(r.root, p))
	}
	for _, name := range []string{"state.db", "state.db-wal", "state.db-shm"} {
		must(t, removeIfThere(filepath.Join(r.state, name)))
		if b, ok := saved[name]; ok {
			must(t, os.WriteFile(filepath.Join(r.state, name), b, 0o600))
		}
	}
	// Those ten are read and sent again, as their state is not known; not the others.
	r.want("the state file rolled back", keys)
	for p, objs := range was {
		now := sums(t, r.s.dir(), keyOf(r.root, p))
		for name, sum := range objs {
			if now[name] != sum {
				t.Errorf("%q: %s has gone or was overwritten", p, name)
			}
		}
	}
}

// The daemon does the same, while databases change; /stats counts them.
func Test25Daemon(t *testing.T) {
	t.Parallel()
	r := newReconciled(t, 60)
	r.c.interval = "1s"
	d := replicate(t, r.c, r.clock.env())
	d.waitSynced(20 * time.Second)
	for _, p := range r.paths[:10] {
		must(t, os.Remove(r.newestOf(p)))
	}
	mark := r.s.mark()
	d.waitCycles(2, 20*time.Second)
	if n := r.s.counts(mark).put; n != 0 {
		t.Errorf("%d PUTs before a sweep", n)
	}
	r.clock.set(r.now.Add(26 * time.Hour))
	var st sweepStats
	waitFor(t, 30*time.Second, "ten databases to be reconciled", func() bool {
		must(t, d.json("/stats", &st))
		return st.DatabasesReconciled >= 10
	})
	d.waitCycles(1, 20*time.Second)
	d.waitSynced(20 * time.Second)
	must(t, d.json("/stats", &st))
	if n := r.s.counts(mark).put; n != 10 || st.DatabasesReconciled != 10 {
		t.Errorf("%d PUTs, databases_reconciled %d, want 10", n, st.DatabasesReconciled)
	}
	verifyTarget(t, r.root, r.s.dir(), r.paths)
	d.stop()
}
