package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"
)

// Point 1: the seed's configuration, but for root, bucket, endpoint and keys.
func seedConfig(s *s3server, root string) settings {
	return settings{
		pattern:  seedPattern(root),
		interval: "30s",
		target:   s.target(s.url(), "max_concurrent_uploads: 100"),
	}
}

func Test01SeedConfiguration(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := t.TempDir()
	paths := makeFleet(t, root, 2000)

	// 60 databases are open in WAL mode and written to during the first cycle.
	w := newWriter(t)
	live := map[string]bool{}
	started := map[string]int64{}
	for _, i := range rand.Perm(len(paths))[:60] {
		p := paths[i]
		live[p] = true
		w.open(p, "WAL", "PRAGMA wal_autocheckpoint=20")
		w.exec(p, seqSchema)
		w.do(ask{Op: "loop", ID: p, MinMS: 20, MaxMS: 60, Spill: true})
	}
	waitFor(t, 30*time.Second, "every writer to commit", func() bool {
		for p := range live {
			if started[p] = w.do(ask{Op: "progress", ID: p}).Commits; started[p] == 0 {
				return false
			}
		}
		return true
	})
	for p := range live {
		var n int64
		fmt.Sscan(w.query(p, "SELECT n FROM head"), &n)
		started[p] = n
	}

	c := seedConfig(s, root)
	d := replicate(t, c)
	st := d.wait(120*time.Second, "the first cycle", func(s stats) bool { return s.Cycles >= 1 })
	for p := range live {
		if r := w.do(ask{Op: "stop", ID: p}); r.Other != "" {
			t.Errorf("writer of %q: %s", p, r.Other)
		}
	}
	if st.Databases != 2000 || st.ChangedLastCycle != 2000 || st.UploadsSuccess != 2000 || st.UploadsFailed != 0 {
		t.Errorf("after the first cycle: %+v", st)
	}
	serverAgrees(t, s, st)
	if n, size := countObjects(t, s.dir()); n != 2000 || size != st.BytesUploaded {
		t.Errorf("%d objects of %d bytes in the bucket; /stats: %d of %d", n, size, st.UploadsSuccess, st.BytesUploaded)
	}
	allStatsFields(t, d, st)

	// Each restored one equals its source; those in motion are one committed state
	// between what was committed before the start and now.
	out := t.TempDir()
	config := c.write(t, 0)
	var mu sync.Mutex
	parallel(len(paths), 4, func(i int) {
		p := paths[i]
		to := filepath.Join(out, fmt.Sprintf("%d.db", i))
		r := tryRestore(t, config, p, to)
		err := func() error {
			if r.code != 0 {
				return fmt.Errorf("restore: exit %d: %s", r.code, r.all())
			}
			if live[p] {
				n, err := checkSeq(to)
				if err == nil && n < started[p] {
					err = fmt.Errorf("commit %d is missing, the image ends at %d", started[p], n)
				}
				return err
			}
			if err := compareImage(sqliteImage(t, p), to); err != nil {
				return err
			}
			return integrity(to)
		}()
		if err != nil {
			mu.Lock()
			t.Errorf("%q: %v", p, err)
			mu.Unlock()
		}
		os.Remove(to)
	})

	// The rest of the live ones' commits, then nothing. The changes are made right
	// behind a cycle, so that the next one sees all of them.
	from := d.stats().Cycles
	st = d.wait(70*time.Second, "the next cycle", func(s stats) bool { return s.Cycles > from })
	mark := s.mark()
	changed := make(map[string]bool)
	for len(changed) < 37 {
		p := paths[rand.IntN(len(paths))]
		if len(changed) < 10 != live[p] || changed[p] {
			continue
		}
		changed[p] = true
		if live[p] {
			w.exec(p, "UPDATE t SET tag=hex(randomblob(20)) WHERE id=1")
		} else {
			change(t, p)
		}
	}
	after := d.wait(70*time.Second, "the next cycle", func(s stats) bool { return s.Cycles > st.Cycles })
	if after.ChangedLastCycle != 37 || after.UploadsSuccess-st.UploadsSuccess != 37 {
		t.Errorf("37 databases changed: changed_last_cycle %d, uploads_success %d more", after.ChangedLastCycle, after.UploadsSuccess-st.UploadsSuccess)
	}
	reqs, _ := s.requests(mark)
	if got := countRequests(reqs); got.put != 37 || got.putBytes != after.BytesUploaded-st.BytesUploaded {
		t.Errorf("the server counts %+v; /stats: 37 uploads of %d bytes", got, after.BytesUploaded-st.BytesUploaded)
	}
	serverAgrees(t, s, after)
	verifyTarget(t, root, s.dir(), paths)
	d.stop()
	w.quit()
}

// serverAgrees compares the counters since the start of the only daemon of s with
// the server's access log. Restores run beside it are GETs and LISTs only.
func serverAgrees(t testing.TB, s *s3server, st stats) {
	t.Helper()
	var c counts
	poll(3*time.Second, func() bool { c = s.counts(0); return c.putOK >= st.UploadsSuccess })
	if c.putOK != st.UploadsSuccess || c.putBytes != st.BytesUploaded {
		t.Errorf("the server counts %d objects of %d bytes, /stats %d of %d", c.putOK, c.putBytes, st.UploadsSuccess, st.BytesUploaded)
	}
	if puts := c.put + s.ownerPuts(); puts != st.APICalls.Put {
		t.Errorf("the server counts %d PUTs, /stats %d", puts, st.APICalls.Put)
	}
}

var statsFields = []string{
	"api_calls", "bytes_uploaded", "changed_last_cycle", "cost_usd_per_day", "cycle_overruns", "cycle_seconds", "cycles", "databases",
	"databases_empty", "databases_failed", "databases_gone", "failures", "last_scan", "not_databases", "oldest_unsynced_seconds",
	"puts_per_day", "scan_seconds", "target", "unsynced", "uploads_failed", "uploads_skipped_unchanged", "uploads_success", "uptime_seconds", "version",
}

// allStatsFields checks that every documented field is there and plausible after
// the first cycle.
func allStatsFields(t testing.TB, d *daemon, st stats) {
	t.Helper()
	raw := must1[[]byte](t)(d.get("/stats"))
	var m map[string]json.RawMessage
	must(t, json.Unmarshal(raw, &m))
	for _, k := range statsFields {
		if _, ok := m[k]; !ok {
			t.Errorf("/stats has no %q", k)
		}
	}
	var calls map[string]int
	must(t, json.Unmarshal(m["api_calls"], &calls))
	var kinds []string
	for k := range calls {
		kinds = append(kinds, k)
	}
	sort.Strings(kinds)
	if fmt.Sprint(kinds) != "[delete get list put]" {
		t.Errorf("api_calls: %s", m["api_calls"])
	}
	if st.LastScan == nil {
		t.Error("last_scan is null after a cycle")
	} else if at, err := time.Parse(time.RFC3339Nano, *st.LastScan); err != nil || at.Location() != time.UTC || time.Since(at) > 3*time.Minute || time.Until(at) > 0 {
		t.Errorf("last_scan %q: %v", *st.LastScan, err)
	}
	if st.OldestUnsyncedSeconds == nil {
		t.Error("oldest_unsynced_seconds is null after a cycle")
	}
	if st.ScanSeconds <= 0 || st.CycleSeconds < st.ScanSeconds || st.UptimeSeconds <= 0 {
		t.Errorf("scan_seconds %v, cycle_seconds %v, uptime_seconds %v", st.ScanSeconds, st.CycleSeconds, st.UptimeSeconds)
	}
	// What is not extrapolated: at least the first backups, at most all requests so far.
	const usd = 0.005 / 1000
	once := st.CostUSDPerDay - st.PutsPerDay*usd
	if least, most := float64(st.Databases)*usd, float64(st.APICalls.Put+st.APICalls.List)*usd; once < least*0.8 || once > most*1.2+1e-5 {
		t.Errorf("cost_usd_per_day %v, puts_per_day %v: the rest is not between %v and %v", st.CostUSDPerDay, st.PutsPerDay, least, most)
	}
	if !strings.Contains(st.Version, "v0.5.18+multidb") {
		t.Errorf("version %q", st.Version)
	}
	if strings.Contains(string(raw), secretKey) || strings.Contains(d.output(), secretKey) {
		t.Error("the secret key is in /stats or the log")
	}
	metrics := string(must1[[]byte](t)(d.get("/metrics")))
	series := 0
	for line := range strings.SplitSeq(metrics, "\n") {
		if strings.HasPrefix(line, "litestream_multi_db_") {
			series++
			if strings.Contains(line, ".db") || strings.Contains(line, "tenant") {
				t.Errorf("a metric names a database: %s", line)
			}
		}
	}
	if series < 5 || series > 100 {
		t.Errorf("%d litestream_multi_db_ series in /metrics", series)
	}
}
