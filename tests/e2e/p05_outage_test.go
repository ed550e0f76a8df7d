package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// outage is a fleet with an S3 server behind a proxy, all in the target.
type outage struct {
	s     *s3server
	p     *proxy
	root  string
	paths []string
	d     *daemon
	st    stats
	rss   int64
}

func newOutage(t *testing.T, n int, extra ...string) *outage {
	t.Helper()
	t.Parallel()
	o := &outage{s: startS3(t), root: t.TempDir()}
	o.paths = makeFleet(t, o.root, n)
	o.p = startProxy(t, o.s.hostPort(), nil)
	o.d = replicate(t, settings{
		pattern: seedPattern(o.root), interval: "1s", target: o.s.target(o.p.url(), "max_concurrent_uploads: 16"),
		keys: extra, top: []string{"shutdown-sync-timeout: 5s"},
	})
	o.d.waitSynced(60 * time.Second)
	o.st = o.d.waitCycles(1, 20*time.Second)
	o.rss, _ = o.d.memory()
	return o
}

func (o *outage) change(t testing.TB, n int) {
	t.Helper()
	for _, p := range o.paths[:n] {
		change(t, p)
	}
}

// failing waits for `cycles` cycles in which n databases cannot be uploaded, and
// holds /stats to it.
func (o *outage) failing(t testing.TB, n, cycles int, limit time.Duration, say ...string) stats {
	t.Helper()
	st := o.d.waitCycles(cycles, limit)
	if st.Unsynced != n || st.DatabasesFailed != n || st.OldestUnsyncedSeconds == nil || *st.OldestUnsyncedSeconds <= 0 {
		t.Errorf("%d databases cannot be uploaded; /stats: unsynced %d, databases_failed %d, oldest %v", n, st.Unsynced, st.DatabasesFailed, st.OldestUnsyncedSeconds)
	}
	if st.UploadsSuccess != o.st.UploadsSuccess || st.UploadsFailed == 0 {
		t.Errorf("uploads_success %d (before: %d), uploads_failed %d", st.UploadsSuccess, o.st.UploadsSuccess, st.UploadsFailed)
	}
	if len(st.Failures) != min(n, 20) {
		t.Errorf("%d failures in /stats, want %d", len(st.Failures), min(n, 20))
	}
	for _, f := range st.Failures {
		if !strings.HasPrefix(f.Path, o.root) || f.Stage != "upload" || f.Cycles < 1 {
			t.Errorf("failure %+v", f)
		}
		for _, s := range say {
			if !strings.Contains(strings.ToLower(f.Message), strings.ToLower(s)) {
				t.Errorf("message %q does not say %q", f.Message, s)
			}
		}
	}
	if t.Failed() {
		t.Logf("failures: %+v", st.Failures)
	}
	return st
}

// caughtUp waits for two cycles and then wants everything in the target.
func (o *outage) caughtUp(t testing.TB) {
	t.Helper()
	st := o.d.waitCycles(2, 60*time.Second)
	if st.Unsynced != 0 || st.DatabasesFailed != 0 || len(st.Failures) != 0 {
		t.Errorf("two cycles after the return: unsynced %d, databases_failed %d, failures %+v", st.Unsynced, st.DatabasesFailed, st.Failures)
	}
	if c := o.s.counts(0); st.UploadsSuccess > c.putOK {
		t.Errorf("/stats counts %d uploads, the server %d", st.UploadsSuccess, c.putOK)
	}
	verifyTarget(t, o.root, o.s.dir(), o.paths)
	if rss, _ := o.d.memory(); rss > o.rss+24<<20 {
		t.Errorf("RSS grew from %d to %d MB", o.rss>>20, rss>>20)
	}
	if strings.Contains(o.d.output(), secretKey) {
		t.Error("the secret key is in the log")
	}
}

// prompt is SIGTERM with shutdown-sync-timeout: 5s.
func (o *outage) prompt(t testing.TB) {
	t.Helper()
	if took, err := o.d.terminate(20 * time.Second); took > 7*time.Second {
		t.Errorf("SIGTERM with shutdown-sync-timeout 5s took %v (%v)", took, err)
	}
}

// Point 5: the server is away for three cycles.
func Test05ServerStopped(t *testing.T) {
	o := newOutage(t, 120)
	o.p.set(nil)
	o.s.kill()
	o.change(t, 50)
	st := o.failing(t, 50, 3, 60*time.Second)
	if n := strings.Count(o.d.output(), "\n"); n > 300 {
		t.Errorf("%d lines of log", n)
	}
	if st.Failures[0].Cycles < 2 {
		t.Errorf("failing for three cycles: %+v", st.Failures[0])
	}
	o.s.start()
	o.caughtUp(t)
	o.d.stop()
}

// The same without the proxy: connections are refused. The cycle gives up after a
// few of them, and every database is known as not in the target.
func Test05ConnectionRefused(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	o := &outage{s: s, root: t.TempDir()}
	o.paths = makeFleet(t, o.root, 200)
	o.d = replicate(t, settings{
		pattern: seedPattern(o.root), interval: "1s", target: s.target(s.url()), top: []string{"shutdown-sync-timeout: 5s"},
	})
	o.d.waitSynced(60 * time.Second)
	o.st = o.d.waitCycles(1, 20*time.Second)
	o.rss, _ = o.d.memory()
	s.kill()
	o.change(t, 150)
	o.failing(t, 150, 3, 60*time.Second)
	s.start()
	o.caughtUp(t)
	s.kill()
	o.change(t, 30)
	o.d.waitCycles(1, 30*time.Second)
	o.prompt(t)
	// Nothing of it is lost: the next start finds the thirty.
	s.start()
	o.d = replicateConfigAgain(t, o.d)
	o.d.waitSynced(30 * time.Second)
	verifyTarget(t, o.root, s.dir(), o.paths)
	o.d.stop()
}

func replicateConfigAgain(t testing.TB, d *daemon) *daemon {
	t.Helper()
	n := replicateConfig(t, d.config, d.port)
	waitFor(t, 20*time.Second, "/stats to answer", func() bool { _, err := n.tryStats(); return err == nil })
	return n
}

// The server dies with uploads under way.
func Test05KilledMidUpload(t *testing.T) {
	o := newOutage(t, 400)
	mark := o.s.mark()
	o.change(t, 400)
	waitFor(t, 30*time.Second, "the first uploads of the cycle", func() bool { return o.s.counts(mark).put > 20 })
	o.s.kill()
	st := o.d.waitCycles(1, 60*time.Second)
	if st.Unsynced == 0 {
		t.Skip("everything was uploaded before the kill")
	}
	if ok := o.s.counts(0).putOK; st.UploadsSuccess > ok {
		t.Errorf("/stats counts %d uploads, the server %d", st.UploadsSuccess, ok)
	}
	o.s.start()
	o.caughtUp(t)
	o.d.stop()
}

// Half of the requests are answered with 503 SlowDown.
func Test05SlowDown(t *testing.T) {
	o := newOutage(t, 200)
	o.p.set(func(n int64, r *http.Request) int {
		if n%2 == 0 {
			return 503
		}
		return 0
	})
	o.change(t, 200)
	st := o.d.waitCycles(1, 60*time.Second)
	if st.UploadsFailed == 0 || st.UploadsSuccess == o.st.UploadsSuccess {
		t.Errorf("half of the requests fail: uploads_success %d more, uploads_failed %d", st.UploadsSuccess-o.st.UploadsSuccess, st.UploadsFailed)
	}
	for _, f := range st.Failures {
		if f.Stage != "upload" || !strings.Contains(f.Message, "503") || !strings.Contains(f.Message, "SlowDown") || !strings.Contains(f.Message, "PROXY") {
			t.Errorf("failure %+v: want the status, the code and the request id", f)
		}
	}
	// Even so everything arrives in the end, without a retry storm.
	st = o.d.wait(60*time.Second, "everything to arrive through the 503s", func(s stats) bool { return s.Unsynced == 0 })
	if st.APICalls.Put != st.UploadsSuccess+st.UploadsFailed+o.s.ownerPuts() {
		t.Errorf("%d PUTs sent for %d + %d uploads", st.APICalls.Put, st.UploadsSuccess, st.UploadsFailed)
	}
	o.change(t, 100)
	o.d.waitCycles(1, 60*time.Second)
	o.p.set(nil)
	o.caughtUp(t)
	o.d.stop()
}

// The server takes requests and never answers.
func Test05Hanging(t *testing.T) {
	o := newOutage(t, 60)
	o.p.setHang(true)
	o.change(t, 5)
	st := o.d.wait(90*time.Second, "the time-out", func(s stats) bool { return s.DatabasesFailed == 5 })
	for _, f := range st.Failures {
		if f.Stage != "upload" || f.Message == "" {
			t.Errorf("failure %+v", f)
		}
	}
	t.Logf("%+v", st.Failures[0])
	if st.UploadsSuccess != o.st.UploadsSuccess {
		t.Error("an upload that hung was counted")
	}
	o.p.setHang(false)
	o.caughtUp(t)
	// SIGTERM while requests hang.
	o.p.setHang(true)
	seen := o.p.requests.Load()
	o.change(t, 5)
	waitFor(t, 20*time.Second, "requests to hang", func() bool { return o.p.requests.Load() > seen })
	o.prompt(t)
}

// Uploads hang, and the applications go on: no lock of theirs is held meanwhile, not even
// of one that writes without a pause and is read under SHARED.
func Test05WritersWhileHanging(t *testing.T) {
	o := newOutage(t, 10)
	w := newWriter(t)
	modes := []string{"DELETE", "TRUNCATE", "PERSIST", "WAL"}
	paced, hot := o.paths[:len(modes)], o.paths[len(modes)]
	for i, p := range paced {
		w.open(p, modes[i])
		w.exec(p, seqSchema)
	}
	w.open(hot, "DELETE", "PRAGMA synchronous=OFF", "PRAGMA busy_timeout=5000")
	w.exec(hot, seqSchema)
	hotKey := keyOf(o.root, hot)
	release, hangs := make(chan struct{}), make(chan struct{})
	var once sync.Once
	for _, p := range paced {
		w.do(ask{Op: "loop", ID: p, MinMS: 50, MaxMS: 150})
	}
	w.do(ask{Op: "loop", ID: hot})
	o.p.set(func(_ int64, r *http.Request) int {
		if r.Method != http.MethodPut {
			return 0
		}
		if strings.Contains(r.URL.Path, hotKey) {
			once.Do(func() { close(hangs) })
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return 0
	})
	select {
	case <-hangs:
	case <-time.After(60 * time.Second):
		t.Fatal("the writer without a pause is not backed up")
	}
	progress := func(p string) int64 { return w.do(ask{Op: "progress", ID: p}).Commits }
	goal := map[string]int64{hot: progress(hot) + 300}
	for _, p := range paced {
		goal[p] = progress(p) + 30
	}
	for p, n := range goal {
		waitFor(t, 20*time.Second, "commits to "+p+" while its upload hangs", func() bool { return progress(p) >= n })
	}
	for p := range goal {
		r := w.do(ask{Op: "stop", ID: p})
		if r.Busy*20 > r.Commits || r.Other != "" { // Test03NoBusy wants none
			t.Errorf("%s: %d commits, %d SQLITE_BUSY, %s", p, r.Commits, r.Busy, r.Other)
		}
	}
	w.quit()
	close(release)
	o.p.set(nil)
	o.caughtUp(t)
	o.d.stop()
}

func Test05WrongKeys(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := t.TempDir()
	paths := makeFleet(t, root, 30)
	for _, tt := range []struct{ name, from, to, say, code string }{
		{"secret", secretKey, "wrong-secret-0123456789", "403", "SignatureDoesNotMatch"},
		// AWS says 403 InvalidAccessKeyId, versitygw 404 for a LIST and 403 for a PUT.
		{"key id", accessKey, "AKIANOBODY", "40", "access key"},
		{"bucket", "bucket: " + bucket, "bucket: no-such-bucket", "404", "NoSuchBucket"},
	} {
		c := settings{pattern: seedPattern(root), interval: "1s", target: strings.Replace(s.target(s.url()), tt.from, tt.to, 1),
			keys: []string{"state_dir: " + t.TempDir()}, top: []string{"shutdown-sync-timeout: 5s"}}
		o := &outage{s: s, root: root, paths: paths}
		o.d = replicate(t, c)
		o.failing(t, 30, 2, 30*time.Second, tt.say, tt.code)
		if strings.Contains(o.d.output(), "wrong-secret") || strings.Contains(o.d.output(), secretKey) {
			t.Errorf("%s: a secret is in the log", tt.name)
		}
		if n, _ := countObjects(t, s.root); n != 0 {
			t.Errorf("%s: %d objects", tt.name, n)
		}
		o.prompt(t)
	}
	// With the right keys and the same state everything arrives.
	c := settings{pattern: seedPattern(root), interval: "1s", target: s.target(s.url())}
	d := replicate(t, c)
	d.waitSynced(30 * time.Second)
	verifyTarget(t, root, s.dir(), paths)
	d.stop()
}

// The bucket is made while we run.
func Test05BucketAppears(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := t.TempDir()
	paths := makeFleet(t, root, 30)
	must(t, os.Remove(s.dir()))
	o := &outage{s: s, root: root, paths: paths}
	o.d = replicate(t, settings{pattern: seedPattern(root), interval: "1s", target: s.target(s.url())})
	o.failing(t, 30, 2, 30*time.Second, "404", "NoSuchBucket")
	o.rss, _ = o.d.memory()
	must(t, os.Mkdir(s.dir(), 0o755))
	o.caughtUp(t)
	o.d.stop()
}

func Test05UnknownCA(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := t.TempDir()
	paths := makeFleet(t, root, 30)
	p := startProxy(t, s.hostPort(), selfSigned(t))
	c := settings{pattern: seedPattern(root), interval: "1s", target: s.target(p.url()), top: []string{"shutdown-sync-timeout: 5s"}}
	o := &outage{s: s, root: root, paths: paths}
	o.d = replicate(t, c)
	o.failing(t, 30, 2, 30*time.Second, "certificate")
	if n := p.requests.Load(); n != 0 {
		t.Errorf("%d requests were sent to a server nobody vouches for", n)
	}
	o.prompt(t)
	c.target = s.target(p.url(), "skip_verify: true")
	d := replicate(t, c)
	d.waitSynced(30 * time.Second)
	verifyTarget(t, root, s.dir(), paths)
	d.stop()
}

// A file target that cannot be written for a while.
func Test05FileTargetFails(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("a read-only mount takes root")
	}
	root, target := t.TempDir(), t.TempDir()
	paths := makeFleet(t, root, 120)
	script := fmt.Sprintf(`mount -t tmpfs -o size=1m none %s`, quote(target))
	d := replicate(t, settings{pattern: seedPattern(root), interval: "1s", target: fileTarget(target)}, inOwnMounts(script))
	st := d.waitCycles(2, 30*time.Second)
	if st.UploadsFailed == 0 || st.DatabasesFailed == 0 || st.Unsynced != st.DatabasesFailed || st.Unsynced+st.UploadsSuccess < len(paths) {
		t.Errorf("a target of 1 MB for more than that: %+v", st)
	}
	for _, f := range st.Failures {
		if f.Stage != "upload" || !strings.Contains(strings.ToLower(f.Message), "space") {
			t.Errorf("failure %+v", f)
		}
	}
	if _, err := d.terminate(30 * time.Second); err == nil {
		t.Log("exit 0 with databases that are not in the target")
	}
}
