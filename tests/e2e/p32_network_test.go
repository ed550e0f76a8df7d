package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// networkFleet is a mixed fleet with live writers, behind a proxy that injects faults.
type networkFleet struct {
	t       testing.TB
	p       *proxy
	root    string
	target  string   // directory of its objects
	static  []string // nobody has them open; changed by hand
	live    []string // loops write to them
	w       *writer
	config  settings
	d       *daemon
	base    usage
	samples []sample // of the live ones, oldest first
	changed []string // static ones that changed last, and when they had
	at      time.Time
	audited string // last_scan of the last cycle that was looked at
}

// sample is what the live databases held at least at a moment.
type sample struct {
	at    time.Time
	heads map[string]string
}

// usage is what a process takes of the machine.
type usage struct{ rss, threads, sockets, files int64 }

// Slack for what a process may take more after a fault than before: garbage that Go has
// not collected, threads of its runtime, one connection for each upload at a time.
const (
	rssSlack      = 20 << 20
	threadSlack   = 6
	uploadsAtOnce = 8
	socketSlack   = uploadsAtOnce + 4
)

// liveModes are the journal modes of the live databases.
var liveModes = []struct {
	mode  string
	setup []string
	spill bool
}{
	{"WAL", nil, false},
	{"WAL", []string{"PRAGMA wal_autocheckpoint=4"}, false},
	{"WAL", []string{"PRAGMA cache_size=5"}, true},
	{"DELETE", nil, false},
	{"TRUNCATE", nil, false},
	{"PERSIST", []string{"PRAGMA cache_size=5"}, true},
}

// newNetworkFleet starts a fleet below prefix in the bucket of s, and a daemon. scheme is
// http or https. The keys to the bucket are in the configuration, unless there are opts.
func newNetworkFleet(t testing.TB, s *s3server, prefix, scheme string, opts ...option) *networkFleet {
	t.Helper()
	f := &networkFleet{t: t, root: filepath.Join(t.TempDir(), "data"), target: filepath.Join(s.dir(), prefix)}
	extra := []string{fmt.Sprintf("max_concurrent_uploads: %d", uploadsAtOnce)}
	f.p = startProxy(t, s.hostPort(), nil)
	if scheme == "https" {
		f.p = startProxy(t, s.hostPort(), selfSigned(t))
		extra = append(extra, "skip_verify: true")
	}
	f.static = makeFleet(t, f.root, 24)
	f.w = newWriter(t)
	dir := filepath.Join(f.root, "live", "databases", "d", "branches", "main", "tenants")
	must(t, os.MkdirAll(dir, 0o755))
	for i, m := range liveModes {
		p := filepath.Join(dir, fmt.Sprintf("w%d.db", i))
		f.live = append(f.live, p)
		f.w.open(p, m.mode, append([]string{"PRAGMA synchronous=OFF"}, m.setup...)...)
		f.w.exec(p, seqSchema)
		f.w.do(ask{Op: "loop", ID: p, MinMS: 40, MaxMS: 160, Spill: m.spill})
	}
	target := strings.Replace(s.target(f.p.url(), extra...), seedTemplate, prefix+"/"+seedTemplate, 1)
	if len(opts) > 0 {
		target = strings.NewReplacer(accessKey, `""`, secretKey, `""`).Replace(target)
	}
	f.config = settings{pattern: seedPattern(f.root), interval: "1s", target: target, keys: []string{"memory_limit: 16MB"}, top: []string{"shutdown-sync-timeout: 5s"}}
	f.d = replicate(t, f.config, opts...)
	if !f.cycles("before the faults", 2) {
		t.Fatalf("not synced before any fault: %+v", f.d.stats().Failures)
	}
	f.base = f.usage()
	return f
}

func (f *networkFleet) usage() (u usage) {
	f.t.Helper()
	pid := f.d.cmd.Process.Pid
	u.rss, _ = f.d.memory()
	threads := must1[[]os.DirEntry](f.t)(os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)))
	u.threads = int64(len(threads))
	fds := must1[[]os.DirEntry](f.t)(os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)))
	for _, fd := range fds {
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if err != nil {
			continue // closed by now
		}
		if strings.HasPrefix(to, "socket:") {
			u.sockets++
		} else {
			u.files++
		}
	}
	return u
}

// change commits to n static databases, others each time.
func (f *networkFleet) change(n int) {
	f.t.Helper()
	f.static = append(f.static[n:], f.static[:n]...)
	f.changed = slices.Clone(f.static[:n])
	for _, p := range f.changed {
		change(f.t, p)
	}
	f.at = time.Now()
}

// cycles waits until n cycles that began after this call have ended, and holds every
// acknowledgement on the way against the target. Returns whether all was in the target
// after one of them.
func (f *networkFleet) cycles(what string, n int) (synced bool) {
	f.t.Helper()
	start := time.Now()
	first := 0
	var st stats
	ok := poll(time.Minute, func() bool {
		f.sample()
		st = f.d.stats()
		f.audit(what, st)
		if first == 0 && st.LastScan != nil && scanOf(f.t, st).After(start) {
			first = st.Cycles
		}
		synced = synced || first > 0 && st.Unsynced == 0 && st.DatabasesFailed == 0
		return first > 0 && st.Cycles >= first+n-1
	})
	if !ok {
		f.t.Fatalf("%s: waited a minute in vain for %d cycles; /stats: %+v", what, n, st)
	}
	return synced
}

func scanOf(t testing.TB, st stats) time.Time {
	t.Helper()
	return must1[time.Time](t)(time.Parse(time.RFC3339Nano, *st.LastScan))
}

func (f *networkFleet) sample() {
	f.t.Helper()
	s := sample{heads: map[string]string{}}
	for _, p := range f.live {
		s.heads[p] = f.w.query(p, "SELECT n FROM head")
	}
	s.at = time.Now()
	if len(f.samples) == 100 {
		f.samples = f.samples[1:]
	}
	f.samples = append(f.samples, s)
}

// audit takes /stats at its word: if nothing is unsynced, the target has everything that
// was committed before that cycle's scan.
func (f *networkFleet) audit(what string, st stats) {
	f.t.Helper()
	if st.LastScan == nil || st.Unsynced != 0 || *st.LastScan == f.audited {
		return
	}
	f.audited = *st.LastScan
	scan := scanOf(f.t, st)
	for i := len(f.samples) - 1; i >= 0; i-- {
		if f.samples[i].at.Before(scan) {
			for p, want := range f.samples[i].heads {
				if got := f.head(p); got < mustInt(want) {
					f.t.Errorf("%s: /stats of %s has nothing unsynced, and the target has commit %d of %q, which was at %s before", what, f.audited, got, p, want)
				}
			}
			break
		}
	}
	if f.at.Before(scan) {
		verifyTarget(f.t, f.root, f.target, f.changed)
	}
}

// head is the number of the state that the newest object of a live database holds.
func (f *networkFleet) head(path string) int64 {
	f.t.Helper()
	img, _ := newest(f.t, f.target, keyOf(f.root, path))
	tmp := filepath.Join(f.t.TempDir(), "head.db")
	must(f.t, os.WriteFile(tmp, img, 0o600))
	n, err := checkSeq(tmp)
	if err != nil {
		f.t.Errorf("newest object of %q: %v", path, err)
	}
	return n
}

func mustInt(s string) (n int64) {
	if _, err := fmt.Sscan(s, &n); err != nil {
		panic(err)
	}
	return n
}

// caughtUp wants, two cycles after the faults, everything in the target and the process
// as it was.
func (f *networkFleet) caughtUp(what string) {
	f.t.Helper()
	if !f.cycles(what+", after it", 2) {
		st := f.d.stats()
		f.t.Errorf("%s: not caught up two cycles after it: unsynced %d, failed %d, %+v", what, st.Unsynced, st.DatabasesFailed, st.Failures)
	}
	var u usage
	if !poll(5*time.Second, func() bool {
		u = f.usage()
		return u.rss <= f.base.rss+rssSlack && u.threads <= f.base.threads+threadSlack && u.sockets <= f.base.sockets+socketSlack && u.files <= f.base.files
	}) {
		f.t.Errorf("%s: the process takes %+v after it, %+v before", what, u, f.base)
	}
	if n := f.p.strayed.Load(); n != 0 {
		f.t.Errorf("%s: %d requests followed a redirect to another host", what, n)
	}
}

// end stops the writers and compares everything.
func (f *networkFleet) end() {
	f.t.Helper()
	for _, p := range f.live {
		if r := f.w.do(ask{Op: "stop", ID: p}); r.Other != "" {
			f.t.Errorf("%q: the writer has seen: %s", p, r.Other)
		}
	}
	f.cycles("at the end", 2)
	f.d.waitSynced(20 * time.Second)
	all := append(slices.Clone(f.static), f.live...)
	verifyTarget(f.t, f.root, f.target, all)
	for _, p := range all {
		for _, o := range objects(f.t, f.target, keyOf(f.root, p)) {
			if _, _, err := decodeObject(must1[[]byte](f.t)(os.ReadFile(o))); err != nil {
				f.t.Errorf("%s: %v", o, err)
			}
		}
	}
	out := f.d.output()
	if strings.Contains(out, secretKey) || strings.Contains(out, "Signature=") {
		f.t.Error("a secret is in the log")
	}
	f.d.stop()
}

func isWrite(r *http.Request) bool { return r.Method != http.MethodGet }

// Every kind of fault, while databases are written to and backed up.
func Test32Replicate(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	const groups = 7
	for g := range groups {
		t.Run(fmt.Sprint("fleet", g), func(t *testing.T) {
			t.Parallel()
			scheme := []string{"http", "https"}[g%2]
			f := newNetworkFleet(t, s, fmt.Sprint("fleet", g), scheme)
			for i, kind := range allFaults {
				if i%groups == g && !slices.Contains(slowFaults, kind) {
					f.suffer(kind)
				}
			}
			f.end()
			t.Log(f.p.tally())
		})
	}
}

// What nothing moves in, or so little that it is as good as nothing, is given up after
// the time-out for that, and the cycle ends.
func Test32Slow(t *testing.T) {
	t.Parallel()
	f := newNetworkFleet(t, startS3(t), "slow", "http")
	f.change(uploadsAtOnce - len(f.live)) // so that all wait at the same time
	f.p.chaos(1, 1, slowFaults...)
	start := time.Now()
	f.d.wait(50*time.Second, "the time-outs", func(s stats) bool { return s.DatabasesFailed >= len(f.live) })
	if took := time.Since(start); took < 29*time.Second {
		t.Errorf("given up after %v", took)
	}
	for _, kind := range slowFaults {
		if f.p.suffered()[kind] == 0 {
			t.Errorf("no request has suffered %s: the test shows nothing", kind)
		}
	}
	f.p.calm()
	f.caughtUp("slow")
	f.end()
}

// keySource is one of the places that the AWS chain looks for keys in. give has it hold
// others from now on.
type keySource struct {
	env  []string
	give func(id, secret string)
}

func keySources(t testing.TB) map[string]keySource {
	dir := t.TempDir()
	profile, answer := filepath.Join(dir, "credentials"), filepath.Join(dir, "answer.json")
	replace := func(path, text string) {
		must(t, os.WriteFile(path+".new", []byte(text), 0o600))
		must(t, os.Rename(path+".new", path))
	}
	// As of a role, with an end that is far away; but without a token, as the server knows none.
	document := func(id, secret string) string {
		return fmt.Sprintf(`{"Version": 1, "AccessKeyId": %q, "SecretAccessKey": %q, "Expiration": %q}`,
			id, secret, time.Now().Add(6*time.Hour).UTC().Format(time.RFC3339))
	}
	role := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		http.ServeFile(w, r, answer)
	}))
	t.Cleanup(role.Close)
	config := filepath.Join(dir, "config")
	replace(config, "[default]\ncredential_process = /bin/cat "+answer+"\n")
	giveDocument := func(id, secret string) { replace(answer, document(id, secret)) }
	none := filepath.Join(dir, "none")
	return map[string]keySource{
		"container": {[]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI=" + role.URL + "/role", "AWS_SHARED_CREDENTIALS_FILE=" + none, "AWS_CONFIG_FILE=" + none}, giveDocument},
		"process":   {[]string{"AWS_SHARED_CREDENTIALS_FILE=" + none, "AWS_CONFIG_FILE=" + config}, giveDocument},
		"profile": {[]string{"AWS_SHARED_CREDENTIALS_FILE=" + profile, "AWS_CONFIG_FILE=" + none}, func(id, secret string) {
			replace(profile, "[default]\naws_access_key_id = "+id+"\naws_secret_access_key = "+secret+"\n")
		}},
	}
}

// Keys that end before their time, and are replaced where they came from.
func Test32KeysRotated(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"container", "process", "profile"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := keySources(t)[name]
			s := startS3(t)
			s.kill()
			s.keys = [2]string{"AKIAFIRST", "first-secret-5b1f"}
			s.start()
			source.give(s.keys[0], s.keys[1])
			f := newNetworkFleet(t, s, "keys", "http", withoutKeys(t.TempDir()), withEnv(source.env...))

			// The server takes only others from now on, which are not there yet.
			with := func(id string) func(r *http.Request) bool {
				return func(r *http.Request) bool { return strings.Contains(r.Header.Get("Authorization"), "="+id+"/") }
			}
			f.p.chaosFor(with("AKIAFIRST"), 1, 1, faultExpired)
			s.kill()
			s.keys = [2]string{"AKIASECOND", "second-secret-77e2"}
			s.start()
			f.change(4)
			f.cycles("expired", 2)
			st := f.d.stats()
			if st.DatabasesFailed < 4 || len(st.Failures) == 0 || !strings.Contains(st.Failures[0].Message, "ExpiredToken") {
				t.Errorf("with keys that have ended: failed %d, %+v", st.DatabasesFailed, st.Failures)
			}
			source.give(s.keys[0], s.keys[1])
			f.caughtUp("expired")

			// Once more, and now they are not known any more. (For that this server has a
			// code of its own.)
			f.p.chaosFor(with("AKIASECOND"), 1, 1, faultInvalidKey)
			s.kill()
			s.keys = [2]string{"AKIATHIRD", "third-secret-90c4"}
			s.start()
			f.change(4)
			f.cycles("unknown", 2)
			if st := f.d.stats(); st.DatabasesFailed < 4 {
				t.Errorf("with keys that are not known: %+v", st)
			}
			source.give(s.keys[0], s.keys[1])
			f.caughtUp("unknown")
			f.end()
			for _, secret := range []string{"first-secret", "second-secret", "third-secret"} {
				if strings.Contains(f.d.output(), secret) {
					t.Errorf("%s is in the log", secret)
				}
			}
		})
	}
}

// suffer has every request fail, then half of them.
func (f *networkFleet) suffer(kind faultKind) {
	f.t.Helper()
	start := time.Now()
	before := f.p.suffered()[kind]
	f.change(4)
	f.p.chaos(1, 1, kind)
	f.cycles(string(kind), 1)
	f.p.chaos(2, 0.5, kind)
	f.change(4)
	f.cycles(string(kind)+" by half", 2)
	f.p.calm()
	f.caughtUp(string(kind))
	if f.p.suffered()[kind] == before {
		f.t.Errorf("%s: no request has suffered it: the test shows nothing", kind)
	}
	f.t.Logf("%s: %.1f s, %+v", kind, time.Since(start).Seconds(), f.usage())
}
