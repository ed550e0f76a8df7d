package e2e

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A day by a fast clock: the loop of replicate over the real core, cycles 30 s apart by
// every clock of the process, which pass as fast as the work is done. The databases are
// written by SQLite in another process, the target is a real S3 server.
//
// CYCLES: 2880 are a day (200). SEED: what happens to whom (1).

const (
	dayInterval = 30 * time.Second
	dayFleet    = 1000
	dayOpen     = 20 // tenants that are always open, in WAL mode
	dayChanges  = 30 // in each cycle
)

// day is the fleet as it should be seen.
type day struct {
	t      testing.TB
	rng    *rand.Rand
	root   string
	w      *writer
	open   []string
	paths  []string          // all others
	cured  map[string]int    // those that fail, and the cycle in which they no longer do
	cure   map[string]func() // how
	leaves map[int]int       // in how many databases have been gone for three cycles, by cycle
	made   int

	// What /stats must say.
	uploads, skipped, gone int
}

// pick takes n databases that are well and not taken yet.
func (d *day) pick(n int, taken map[string]bool) []string {
	var out []string
	for len(out) < n {
		p := d.paths[d.rng.IntN(len(d.paths))]
		if _, fails := d.cured[p]; !fails && !taken[p] {
			taken[p] = true
			out = append(out, p)
		}
	}
	return out
}

const dayChange = "UPDATE t SET tag=hex(randomblob(20)) WHERE id=1"

func (d *day) change(paths ...string) {
	d.w.do(ask{Op: "each", IDs: paths, Setup: []string{"PRAGMA synchronous=OFF"}, SQL: dayChange})
}

// fail makes path fail until cycle, in which cure is called.
func (d *day) fail(path string, until int, cure func()) {
	d.cured[path], d.cure[path] = until, cure
}

// before is what happens before cycle n.
func (d *day) before(n int) {
	t, taken := d.t, map[string]bool{}
	for p, until := range maps.Clone(d.cured) {
		if until == n {
			d.cure[p]()
			delete(d.cured, p)
			taken[p] = true
		}
	}
	d.gone += d.leaves[n]
	if n == 1 {
		return
	}

	for _, i := range d.rng.Perm(len(d.open))[:dayChanges/3] {
		d.w.exec(d.open[i], dayChange)
	}
	d.change(d.pick(dayChanges-dayChanges/3, taken)...)
	d.uploads += dayChanges

	for _, p := range d.pick(2, taken) { // touched, and the same
		must(t, os.Chtimes(p, time.Now(), time.Now()))
		d.skipped++
	}

	// One goes, one comes.
	p := d.pick(1, taken)[0]
	must(t, os.Remove(p))
	d.paths = slices.DeleteFunc(d.paths, func(q string) bool { return q == p })
	d.leaves[n+2]++
	d.made++
	tpl := must1[[]template](t)(templates())[d.made%5]
	p = filepath.Join(filepath.Dir(p), fmt.Sprintf("new%05d.db", d.made))
	must(t, os.WriteFile(p, tagged(tpl, fmt.Sprint("new ", d.made)), 0o640))
	d.paths = append(d.paths, p)
	taken[p] = true
	d.uploads++

	switch until := n + 1 + d.rng.IntN(8); {
	case n%10 == 0: // damaged, and repaired as it was
		p := d.pick(1, taken)[0]
		whole := must1[[]byte](t)(os.ReadFile(p))
		must(t, os.Truncate(p, int64(len(whole)-1)))
		d.fail(p, until, func() {
			must(t, os.WriteFile(p, whole, 0o640))
			d.skipped++
		})
	case n%10 == 5: // changed, and locked
		p := d.pick(1, taken)[0]
		d.change(p)
		must(t, os.Mkdir(p+".lock", 0o755))
		d.fail(p, until, func() {
			must(t, os.Remove(p+".lock"))
			d.uploads++
		})
	case n%200 == 101: // changed, and in the middle of the next transaction
		p := d.pick(1, taken)[0]
		d.change(p)
		d.w.open(p, "DELETE", "PRAGMA locking_mode=EXCLUSIVE")
		d.w.exec(p, "BEGIN EXCLUSIVE; "+dayChange)
		d.fail(p, n+1, func() {
			d.w.exec(p, "COMMIT")
			d.w.do(ask{Op: "close", ID: p})
			d.uploads++
		})
	}
}

// footprint is what the process has between two cycles.
type footprint struct {
	descriptors, ours, threads float64 // OURS: threads of the core
	rss, state                 float64 // MB
}

func takeFootprint(t testing.TB, pid int, state string) (f footprint) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", pid)
	f.descriptors = float64(len(must1[[]os.DirEntry](t)(os.ReadDir(proc + "fd"))))
	for _, task := range must1[[]os.DirEntry](t)(os.ReadDir(proc + "task")) {
		f.threads++
		if comm, err := os.ReadFile(proc + "task/" + task.Name() + "/comm"); err == nil && strings.HasPrefix(string(comm), "us-") {
			f.ours++
		}
	}
	var size, pages float64
	must1[int](t)(fmt.Sscan(string(must1[[]byte](t)(os.ReadFile(proc+"statm"))), &size, &pages))
	f.rss = pages * float64(os.Getpagesize()) / (1 << 20)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if info, err := os.Stat(filepath.Join(state, "state.db"+suffix)); err == nil {
			f.state += float64(info.Size()) / (1 << 20)
		}
	}
	if n := len(must1[[]os.DirEntry](t)(os.ReadDir(filepath.Join(state, "spool")))); n != 0 {
		t.Errorf("%d files in the spool between two cycles", n)
	}
	return f
}

// flat compares the means of the second and the last tenth.
func flat(t testing.TB, all []footprint) {
	t.Helper()
	for _, what := range []struct {
		name  string
		value func(f footprint) float64
		slack float64
	}{
		{"descriptors", func(f footprint) float64 { return f.descriptors }, 6}, // connections come and go
		{"threads of the core", func(f footprint) float64 { return f.ours }, 0.5},
		{"threads", func(f footprint) float64 { return f.threads }, 5}, // Go starts some under load, and keeps them
		{"MB of RSS", func(f footprint) float64 { return f.rss }, 3},
		{"MB of state", func(f footprint) float64 { return f.state }, 0.5},
	} {
		var tenths []float64
		for i := range 10 {
			sum, n := 0.0, 0.0
			for _, f := range all[i*len(all)/10 : (i+1)*len(all)/10] {
				sum, n = sum+what.value(f), n+1
			}
			tenths = append(tenths, sum/n)
		}
		t.Logf("%-20s in each tenth: %.2f", what.name, tenths)
		// In the short run the heap and the state's WAL take half of it to reach their size.
		if tenths[9] > tenths[4]+what.slack {
			t.Errorf("%s: %.2f in the fifth tenth, %.2f in the last", what.name, tenths[4], tenths[9])
		}
	}
}

// A loop under test, in a process of its own.
type dayLoop struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Scanner
	log   string
	clock *os.File
	stats string // its URL
	n     int
	calls atomic.Int64 // to the server, under way
}

func startDay(t testing.TB, s *s3server, c settings) *dayLoop {
	t.Helper()
	bin := filepath.Join(sharedDir, "day.test")
	if out, err := exec.Command("go", "test", "-c", "-o", bin, "./testdata/day").CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, out)
	}
	dir, port := t.TempDir(), freePort(t)
	l := &dayLoop{t: t, log: filepath.Join(dir, "log"), stats: fmt.Sprintf("http://127.0.0.1:%d/stats", port)}
	resigner := s.resigner()
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.calls.Add(1)
		defer l.calls.Add(-1)
		resigner.ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)
	c.target = s.target(proxy.URL)
	l.clock = must1[*os.File](t)(os.Create(filepath.Join(dir, "clock")))
	l.setClock(0)
	c.noHTTP = true
	l.cmd = exec.Command(bin, "-test.run=^TestLoop$")
	withEnv("LD_PRELOAD="+must1[string](t)(preload("fastclock")), "DAY_CLOCK="+l.clock.Name(),
		"DAY_CONFIG="+c.write(t, 0), fmt.Sprintf("DAY_ADDR=127.0.0.1:%d", port))(l.cmd)
	l.cmd.Env = append(os.Environ(), l.cmd.Env...)
	log := must1[*os.File](t)(os.Create(l.log))
	defer log.Close()
	l.cmd.Stderr = log
	l.in = must1[io.WriteCloser](t)(l.cmd.StdinPipe())
	l.out = bufio.NewScanner(must1[io.ReadCloser](t)(l.cmd.StdoutPipe()))
	must(t, startCommand(l.cmd))
	t.Cleanup(func() {
		_ = l.cmd.Process.Kill()
		if t.Failed() {
			b, _ := os.ReadFile(l.log)
			t.Logf("log: %s", tail(string(b), 4000))
		}
	})
	return l
}

// setClock puts all clocks of the process n intervals ahead.
func (l *dayLoop) setClock(n int) {
	must1[int](l.t)(l.clock.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(n)*uint64(dayInterval)), 0))
}

// cycle waits for the end of the next one.
func (l *dayLoop) cycle() stats {
	l.t.Helper()
	if l.n > 0 {
		// A sweep goes on beside the cycles, and no call of it shall last for an interval.
		waitFor(l.t, time.Minute, "the server", func() bool { return l.calls.Load() == 0 })
		l.setClock(l.n)
		must1[int](l.t)(io.WriteString(l.in, "on\n"))
	}
	l.n++
	if !l.out.Scan() || l.out.Text() != "idle" {
		_ = l.cmd.Wait()
		l.t.Fatalf("cycle %d: the loop ended: %s", l.n, l.out.Text())
	}
	resp, err := statsClient.Get(l.stats)
	must(l.t, err)
	defer resp.Body.Close()
	var st stats
	if resp.StatusCode != http.StatusOK {
		l.t.Fatal(resp.Status)
	}
	must(l.t, json.NewDecoder(resp.Body).Decode(&st))
	return st
}

func Test35Day(t *testing.T) {
	t.Parallel()
	cycles, seed := envInt("CYCLES", 200), envInt("SEED", 1)
	s := startS3(t)
	state := t.TempDir()
	d := &day{t: t, rng: rand.New(rand.NewPCG(uint64(seed), 35)), root: filepath.Join(t.TempDir(), "data"), w: newWriter(t),
		cured: map[string]int{}, cure: map[string]func(){}, leaves: map[int]int{}}
	d.paths = makeFleet(t, d.root, dayFleet)
	d.uploads = len(d.paths)
	for i, p := range d.paths {
		if i%9 == 5 && len(d.open) < dayOpen { // of a template in WAL mode
			// Its WAL soon has the length that it comes back to.
			d.w.open(p, "WAL", "PRAGMA synchronous=OFF", "PRAGMA wal_autocheckpoint=30")
			d.w.exec(p, dayChange)
			d.open = append(d.open, p)
		}
	}
	d.paths = slices.DeleteFunc(d.paths, func(p string) bool { return slices.Contains(d.open, p) })
	l := startDay(t, s, settings{pattern: seedPattern(d.root), interval: "30s",
		keys: []string{"state_dir: " + state, "retention: 6h"}})

	start := time.Now()
	var all []footprint
	var st stats
	for n := 1; n <= cycles; n++ {
		d.before(n)
		st = l.cycle()
		all = append(all, takeFootprint(t, l.cmd.Process.Pid, state))
		want := stats{Databases: dayFleet, Cycles: n, UploadsSuccess: d.uploads, UploadsSkippedUnchgd: d.skipped,
			DatabasesFailed: len(d.cured), Unsynced: len(d.cured), DatabasesGone: d.gone}
		got := stats{Databases: st.Databases, Cycles: st.Cycles, UploadsSuccess: st.UploadsSuccess, UploadsSkippedUnchgd: st.UploadsSkippedUnchgd,
			DatabasesFailed: st.DatabasesFailed, Unsynced: st.Unsynced, DatabasesGone: st.DatabasesGone, UploadsFailed: st.UploadsFailed}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("cycle %d:\n got %+v\nwant %+v\nfailures %+v", n, got, want, st.Failures)
		}
	}
	took := time.Since(start)
	must(t, l.in.Close())
	for l.out.Scan() {
	}
	if err := l.cmd.Wait(); err != nil {
		t.Errorf("the loop: %v", err)
	}

	hours := float64(cycles) * dayInterval.Hours()
	t.Logf("%d cycles, %.1f h by the clock, %.0f s (SEED=%d): %d uploads, %d looked at in vain, %d databases gone, %d fail", cycles, hours, took.Seconds(), seed,
		st.UploadsSuccess, st.UploadsSkippedUnchgd, st.DatabasesGone, st.DatabasesFailed)
	flat(t, all)

	// What the server was asked for.
	reqs, _ := s.allRequests(0)
	var owner, put, list, removed int
	for _, r := range reqs {
		switch {
		case r.isOwner():
			owner++
		case r.op == "s3_PutObject" && r.status == 200:
			put++
		case r.op == "s3_ListObjectsV2":
			list++
		case r.op == "s3_DeleteObjects":
			removed++
		case r.op == "s3_ListMultipartUploads":
		default:
			t.Errorf("unexpected: %+v", r)
		}
	}
	t.Logf("the server counts %d PUTs of objects, %d calls for the owner object, %d LISTs and %d DELETEs of sweeps", put, owner, list, removed)
	if put != st.UploadsSuccess {
		t.Errorf("/stats counts %d uploads, the server %d", st.UploadsSuccess, put)
	}
	if most, least := 300*hours/24+12, 280*hours/24-12; float64(owner) > most || float64(owner) < least {
		t.Errorf("%d calls for the owner object in %.1f h, want %.0f to %.0f", owner, hours, least, most)
	}
	if days := int(hours / 24.01); days > 0 && (removed == 0 || list < 1+days) {
		t.Errorf("no sweep a day: %d LISTs, %d DELETEs in %.1f h", list, removed, hours)
	}

	// And every database that is well can be had from it.
	d.w.quit()
	var well []string
	for _, p := range append(slices.Clone(d.paths), d.open...) {
		if _, fails := d.cured[p]; !fails {
			well = append(well, p)
		}
	}
	verifyTarget(t, d.root, s.dir(), well)
}
