package e2e

import (
	"math"
	"strings"
	"testing"
	"time"
)

// Databases that change all the time are uploaded once in each min_interval; the meter
// says what that costs, also in the first one; a stop takes along what waits; a restart
// and -once go on with the interval.
func Test36MinInterval(t *testing.T) {
	t.Parallel()
	const minInterval = 10 * time.Second
	s := startS3(t)
	root := t.TempDir()
	paths := makeFleet(t, root, 24)
	busy, idle := paths[:12], paths[12]
	w := newWriter(t)
	for _, p := range busy {
		w.open(p, "WAL", "PRAGMA busy_timeout=5000")
		w.exec(p, seqSchema)
	}
	w.do(ask{Op: "loop", ID: busy[0], IDs: busy[1:], MinMS: 50, MaxMS: 200})

	c := settings{pattern: seedPattern(root), interval: "1s", target: s.target(s.url()),
		keys: []string{"min_interval: 10s", "snapshot_window: 0s"}}
	start := time.Now()
	d := replicate(t, c)
	d.wait(30*time.Second, "the first backups", func(s stats) bool { return s.UploadsSuccess >= len(paths) })
	d.wait(60*time.Second, "databases that wait", func(s stats) bool { return s.Unsynced == len(busy) && s.DatabasesFailed == 0 })
	want := float64(len(busy)) * 8640 * 0.000005
	d.wait(90*time.Second, "the meter to be right", func(s stats) bool {
		return math.Abs(s.CostUSDPerDay/want-1) < 0.1 && s.DatabasesFailed == 0
	})

	// Not uploaded for long: at once. And once more: later.
	change(t, idle)
	d.wait(30*time.Second, "the change", func(stats) bool { return puts(s, root, idle) == 2 })
	change(t, idle)
	d.waitCycles(3, 30*time.Second)
	for _, p := range busy {
		w.do(ask{Op: "stop", ID: p})
	}
	st := d.stats()
	if st.Unsynced == 0 || st.DatabasesFailed != 0 || len(st.Failures) != 0 {
		t.Errorf("while databases wait: %+v", st)
	}
	d.stop()
	verifyTarget(t, root, s.dir(), paths)
	atMost := int(time.Since(start)/minInterval) + 2 // the first, and that of the stop
	for _, p := range paths {
		if n := puts(s, root, p); n < 1 || n > atMost {
			t.Errorf("%q was put %d times in %v", p, n, time.Since(start))
		}
	}

	change(t, busy[0])
	mark := s.mark()
	if r := once(t, c); !strings.Contains(r.all(), "wait for min_interval\" system=multi-db databases=1") || s.counts(mark).put != 0 {
		t.Errorf("-once soon after the stop: %d PUT\n%s", s.counts(mark).put, r.all())
	}
	d = replicate(t, c)
	d.waitSynced(30 * time.Second)
	if got := s.counts(mark); got.put != 1 {
		t.Errorf("after a restart: %+v", got)
	}
	verifyTarget(t, root, s.dir(), paths)
	d.stop()
	w.quit()
}

// puts returns how often an object of the database was put.
func puts(s *s3server, root, path string) int {
	return putKeys(s, 0)["/"+bucket+"/"+keyOf(root, path)]
}
