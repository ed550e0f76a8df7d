package e2e

import (
	"fmt"
	"math/rand/v2"
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
	audits  int    // how many were
}

// sample is what the live databases held at least at a moment.
type sample struct {
	at    time.Time
	heads map[string]string
}

// usage is what a process takes of the machine.
type usage struct{ rss, threads, sockets, files int64 }

// cyclesLimit bounds the wait for a few cycles of a second each, on a machine that has
// other things to do.
const cyclesLimit = 2 * time.Minute

// Slack for what a process may take more after a fault than before: garbage that Go has
// not collected, threads of its runtime, one connection for each upload at a time.
const (
	rssSlack      = 20 << 20
	threadSlack   = 6
	uploadsAtOnce = 8
	socketSlack   = uploadsAtOnce + 4
	fileSlack     = 12 // databases that are being read at that moment
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
		f.w.do(ask{Op: "loop", ID: p, MinMS: 60, MaxMS: 240, Spill: m.spill})
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
	for first == 0 || st.Cycles < first+n-1 {
		if time.Since(start) > cyclesLimit {
			f.t.Fatalf("%s: waited %v in vain for %d cycles; /stats: %+v", what, cyclesLimit, n, st)
		}
		time.Sleep(150 * time.Millisecond)
		f.sample()
		st = f.d.stats()
		f.audit(what, st)
		if first == 0 && st.LastScan != nil && scanOf(f.t, st).After(start) {
			first = st.Cycles
		}
		synced = synced || first > 0 && st.Unsynced == 0 && st.DatabasesFailed == 0
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
	f.audits++
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
		return u.rss <= f.base.rss+rssSlack && u.threads <= f.base.threads+threadSlack && u.sockets <= f.base.sockets+socketSlack && u.files <= f.base.files+fileSlack
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
	if !poll(10*time.Second, func() bool { return f.usage().files <= f.base.files }) {
		f.t.Errorf("%+v, %+v before the faults: files are left open", f.usage(), f.base)
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
	half := 2
	if kind[0] == '4' || kind[0] == '5' {
		half = 1 // whole answers: nothing of one request is left over for the next
	}
	f.cycles(string(kind)+" by half", half)
	f.p.calm()
	f.caughtUp(string(kind))
	if f.p.suffered()[kind] == before {
		f.t.Errorf("%s: no request has suffered it: the test shows nothing", kind)
	}
	f.t.Logf("%s: %.1f s, %+v", kind, time.Since(start).Seconds(), f.usage())
}

// A restore that gets next to nothing ends, too.
func Test32SlowRestore(t *testing.T) {
	t.Parallel()
	f := newInspectedThrough(t, startS3(t), "slow")
	f.p.chaosFor(isNew, 1, 1, faultDripAnswer)
	dir := t.TempDir()
	start := time.Now()
	r := tryRestore(t, f.config, f.paths[1], filepath.Join(dir, "out.db"))
	if took := time.Since(start); r.code != 1 || !strings.Contains(r.stderr, "nothing moved for 30000 ms") || took < 29*time.Second {
		t.Errorf("exit %d after %v\n%s", r.code, took, r.all())
	}
	if visible, hidden := tree(dir); len(visible)+len(hidden) != 0 {
		t.Errorf("it has left %q %q", visible, hidden)
	}
	f.p.calm()
	f.restoreOne("afterwards")
}

// inspectedThrough is a small fleet in the bucket, two new objects and three old ones of
// each database, and commands that reach it through a proxy.
type inspectedThrough struct {
	t      testing.TB
	s      *s3server
	p      *proxy
	prefix string
	root   string
	paths  []string
	gone   string // the path of a database that is in the bucket only
	config string
	want   map[string]lost
	keys   map[string]bool // what must stay, whatever is said
}

const oldObjects = 3

func newInspectedThrough(t testing.TB, s *s3server, prefix string) *inspectedThrough {
	t.Helper()
	f := &inspectedThrough{t: t, s: s, p: startProxy(t, s.hostPort(), nil), prefix: prefix, root: filepath.Join(t.TempDir(), "data"), want: map[string]lost{}}
	f.paths = makeFleet(t, f.root, 6)
	f.gone = filepath.Join(filepath.Dir(f.paths[0]), "gone.db")
	target := strings.Replace(s.target(f.p.url()), seedTemplate, prefix+"/"+seedTemplate, 1)
	c := settings{pattern: seedPattern(f.root), target: target, keys: []string{"state_dir: " + t.TempDir(), "snapshot_window: 0s"}}
	f.config = c.write(t, 0)
	once(t, c)
	for _, p := range f.paths {
		change(t, p)
	}
	once(t, c)
	f.keys = f.all()
	if len(f.keys) != 2*len(f.paths) {
		t.Fatalf("%d objects of %d databases", len(f.keys), len(f.paths))
	}
	for _, p := range f.paths {
		f.want[p] = remember(t, p)
	}
	return f
}

func (f *inspectedThrough) key(path string) string { return f.prefix + "/" + keyOf(f.root, path) }

// putOld puts back the old objects, and the database that is gone.
func (f *inspectedThrough) putOld() {
	f.t.Helper()
	image := smallImage(f.t, "old")
	for i := range oldObjects {
		at := time.Date(2020, 1, 1+i, 0, 0, 0, 0, time.UTC)
		for _, p := range f.paths {
			f.s.put(f.key(p)+"/"+objectAt(at), forge(p, image, at))
		}
		if i < 2 {
			f.s.put(f.key(f.gone)+"/"+objectAt(at), forge(f.gone, image, at))
		}
	}
}

// all returns the keys in the bucket that are this fleet's.
func (f *inspectedThrough) all() map[string]bool {
	f.t.Helper()
	out := map[string]bool{}
	for k := range allKeys(f.t, filepath.Join(f.s.dir(), f.prefix)) {
		out[f.prefix+"/"+k] = true
	}
	return out
}

// surplus returns how many old objects there are.
func (f *inspectedThrough) surplus() (n int) {
	f.t.Helper()
	for _, p := range f.paths {
		n += len(objects(f.t, f.s.dir(), f.key(p))) - 2
	}
	return n
}

// kept wants that the newest two of each database are there.
func (f *inspectedThrough) kept(what string) {
	f.t.Helper()
	now := f.all()
	for k := range f.keys {
		if !now[k] {
			f.t.Errorf("%s: %s was deleted", what, k)
		}
	}
}

// failedCleanly wants an error that says something, and no secret.
func (f *inspectedThrough) failedCleanly(what string, r result) {
	f.t.Helper()
	if r.code != 1 || strings.TrimSpace(r.stderr) == "" && !strings.Contains(r.stdout, `"error"`) || strings.Contains(r.all(), "panic:") {
		f.t.Errorf("%s: exit %d\n%s\n%s", what, r.code, r.stdout, r.stderr)
	}
	if strings.Contains(r.all(), secretKey) || strings.Contains(r.all(), "Signature=") {
		f.t.Errorf("%s: a secret is in the output", what)
	}
}

func isList(r *http.Request) bool { return r.URL.Query().Has("list-type") }
func isRemoval(r *http.Request) bool {
	return r.Method == http.MethodDelete || r.URL.Query().Has("delete")
}

// isNew: GET of one of a database's newest objects, but not of what is not one.
func isNew(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, ".db.lz4") && !strings.Contains(r.URL.Path, "/2020")
}

func (f *inspectedThrough) list(what string) {
	f.t.Helper()
	a := multiDB(f.t, f.config, "list")
	if a.code != 0 {
		f.failedCleanly(what, a.result)
		if a.summary != nil {
			f.t.Errorf("%s: failed, and has a summary: %v", what, a.summary)
		}
		return
	}
	if len(a.by("ok")) != len(f.paths) || a.num("backups") != len(f.all()) {
		f.t.Errorf("%s: %v\n%s", what, a.summary, a.stdout)
	}
}

func (f *inspectedThrough) restoreOne(what string) {
	f.t.Helper()
	dir := f.t.TempDir()
	out := filepath.Join(dir, "out.db")
	r := tryRestore(f.t, f.config, f.paths[1], out)
	visible, hidden := tree(dir)
	if r.code != 0 {
		f.failedCleanly(what, r)
		if len(visible)+len(hidden) != 0 {
			f.t.Errorf("%s: failed, and left %q %q", what, visible, hidden)
		}
	} else if err := f.want[f.paths[1]].isBack(out); err != nil || len(visible)+len(hidden) != 1 {
		f.t.Errorf("%s: %v, %q %q", what, err, visible, hidden)
	}
}

// restoreAll may fall back to an older backup where the newest one is damaged. None is.
func (f *inspectedThrough) restoreAll(what string) {
	f.t.Helper()
	dir := f.t.TempDir()
	a := multiDB(f.t, f.config, "restore", "-fallback", "-match", "*/t0*", "-output-dir", dir)
	visible, hidden := tree(dir)
	if a.code != 0 {
		f.failedCleanly(what, a.result)
	} else if len(visible) != len(f.paths) {
		f.t.Errorf("%s: exit 0 with %d of %d databases", what, len(visible), len(f.paths))
	}
	if len(hidden) != 0 || a.summary != nil && a.num("restored") != len(visible) {
		f.t.Errorf("%s: %d files, %q, %v", what, len(visible), hidden, a.summary)
	}
	for _, p := range visible {
		from := f.root + strings.TrimPrefix(p, dir)
		if err := f.want[from].isBack(p); err != nil {
			f.t.Errorf("%s: %q: %v\n%s", what, p, err, a.stdout)
		}
	}
}

// verify has nothing to find.
func (f *inspectedThrough) verify(what string) {
	f.t.Helper()
	a := multiDB(f.t, f.config, "verify", "-all")
	if a.code != 0 {
		f.failedCleanly(what, a.result)
	} else if a.num("databases") != len(f.paths)+1 || a.num("failed") != 0 {
		f.t.Errorf("%s: exit 0 with %v", what, a.summary)
	}
	for _, r := range a.rows {
		if strings.Contains(r.Error, "damaged") || strings.Contains(r.Error, "integrity") {
			f.t.Errorf("%s: a good backup passes for a bad one: %s", what, r.Error)
		}
	}
}

// sweep enforces retention. Whatever it was told, nothing is uploaded, and nothing missed.
func (f *inspectedThrough) sweep(what string) {
	f.t.Helper()
	puts := func() (n int) {
		reqs, _ := f.s.requests(0)
		for _, r := range reqs {
			if r.op == "s3_PutObject" && strings.HasPrefix(r.uri, "/"+bucket+"/"+f.prefix+"/") {
				n++
			}
		}
		return n
	}
	before := puts()
	r := litestream(f.t, []string{"replicate", "-once", "-enforce-retention", "-config", f.config})
	n := f.surplus()
	if r.code != 0 {
		f.failedCleanly(what, r)
	} else if n != 0 && !strings.Contains(r.all(), "old backups cannot be removed") {
		f.t.Errorf("%s: exit 0, and %d old objects are left\n%s", what, n, r.all())
	}
	if n := puts() - before; n != 0 {
		f.t.Errorf("%s: %d uploads, as if backups were missing", what, n)
	}
	f.kept(what)
}

func (f *inspectedThrough) purge(what string) {
	f.t.Helper()
	before := f.all()
	a := multiDB(f.t, f.config, "purge", "-confirm", "2", f.gone)
	left := len(objects(f.t, f.s.dir(), f.key(f.gone)))
	if a.code != 0 {
		f.failedCleanly(what, a.result)
	} else if left != 0 {
		f.t.Errorf("%s: exit 0 with %d objects left", what, left)
	}
	if a.summary != nil && a.num("removed") > 2-left {
		f.t.Errorf("%s: %d objects left, %v", what, left, a.summary)
	}
	if n := len(f.all()) + 2 - left; n != len(before) {
		f.t.Errorf("%s: %d objects before, %d of others after", what, len(before), n)
	}
}

// lastingFaults are those after which a GET is not worth another try. (The others are
// tried again for so long that they may be suffered by a part of the requests only.)
var lastingFaults = []faultKind{
	faultOKError, faultOKPage, faultOKEmpty, faultGzip, faultEndlessBody, faultRedirect301, faultRedirect307,
	faultLengthShort, faultDenied, faultExpired, faultInvalidKey, faultSkewed,
}

// Every kind of fault under the commands that read and delete: what they say they have
// done is done, and right; nothing is deleted, and no backup passes for damaged, because
// of an answer that is none.
func Test32Commands(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	const groups = 7
	for g := range groups {
		t.Run(fmt.Sprint("fleet", g), func(t *testing.T) {
			t.Parallel()
			f := newInspectedThrough(t, s, fmt.Sprint("commands", g))
			for i, kind := range allFaults {
				if i%groups == g && !slices.Contains(slowFaults, kind) {
					f.suffer(kind)
				}
			}
			f.putOld()
			f.sweep("afterwards")
			if n := f.surplus(); n != 0 {
				t.Errorf("%d old objects after a sweep without faults", n)
			}
			if n := f.p.strayed.Load(); n != 0 {
				t.Errorf("%d requests followed a redirect to another host", n)
			}
			t.Log(f.p.tally())
		})
	}
}

func (f *inspectedThrough) suffer(kind faultKind) {
	f.t.Helper()
	before := f.p.suffered()[kind]
	under := func(aimed func(*http.Request) bool, probability float64, what string, command func(string)) {
		f.p.chaosFor(aimed, 3, probability, kind)
		command(string(kind) + ": " + what)
		f.p.calm()
	}
	few := 0.25
	if slices.Contains(lastingFaults, kind) {
		few = 1
	}
	f.putOld()
	under(isList, 1, "list", f.list)
	under(nil, 0.5, "restore", f.restoreOne)
	under(isNew, few, "multi-db restore", f.restoreAll)
	under(isNew, 0.25, "verify", f.verify)
	under(isList, 1, "sweep, of listings", f.sweep)
	under(isRemoval, 1, "sweep, of deletions", f.sweep)
	under(isRemoval, 1, "purge", f.purge)
	if f.p.suffered()[kind] == before {
		f.t.Errorf("%s: no request has suffered it: the test shows nothing", kind)
	}
}

// Who asks whose target it is, and gets an answer that is none, does not take it from
// whoever has it.
func Test32OwnerAsked(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	p := startProxy(t, s.hostPort(), nil)
	root := t.TempDir()
	makeFleet(t, root, 3)
	first := replicate(t, settings{pattern: seedPattern(root), interval: "1s", target: s.target(s.url())})
	first.waitSynced(30 * time.Second)
	c := settings{pattern: seedPattern(root), target: s.target(p.url()), mayFail: true}
	readsOwner := func(r *http.Request) bool {
		return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/owner-")
	}
	for _, kind := range append([]faultKind{faultTwice, faultWrongETag, faultCutBody, faultCutHead}, lastingFaults...) {
		if kind == faultDenied {
			continue // who may not read it writes unguarded, and says so
		}
		p.chaosFor(readsOwner, 1, 1, kind)
		mark := s.mark()
		r := once(t, another(t, c))
		if n := s.counts(mark); r.code != 1 || n.put != 0 {
			t.Errorf("%s: exit %d, and the server counts %+v\n%s", kind, r.code, n, r.all())
		}
		p.calm()
		if p.suffered()[kind] == 0 {
			t.Errorf("%s: no request has suffered it: the test shows nothing", kind)
		}
	}
	wantRefused(t, first, another(t, c), "-once")
	first.stop()
}

func isPart(r *http.Request) bool { return r.URL.Query().Has("partNumber") }
func isComplete(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Query().Has("uploadId")
}

// An object that goes in parts: it is there when /stats says so, and whole.
func Test32Parts(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	p := startProxy(t, s.hostPort(), nil)
	root := filepath.Join(t.TempDir(), "data")
	large := makeFleet(t, root, 3)[1]
	incompressible(t, large, 68)
	d := replicate(t, settings{pattern: seedPattern(root), interval: "1s", target: s.target(p.url()), keys: []string{"memory_limit: 16MB"}})
	d.waitSynced(60 * time.Second)
	for _, step := range []struct {
		kind  faultKind
		aimed func(*http.Request) bool
	}{
		{faultOKError, isComplete}, // S3 does that
		{faultCutHead, isComplete},
		{faultLateError, isPart},
	} {
		build(t, large, "UPDATE t SET tag=hex(randomblob(20)) WHERE id=1")
		p.chaosFor(step.aimed, 1, 1, step.kind)
		d.wait(60*time.Second, "the fault to be seen", func(st stats) bool { return st.DatabasesFailed == 1 })
		if st := d.stats(); st.Unsynced != 1 {
			t.Errorf("%s: %+v", step.kind, st)
		}
		p.calm()
		d.waitSynced(60 * time.Second)
		verifyTarget(t, root, s.dir(), []string{large})
	}
	for _, o := range objects(t, s.dir(), keyOf(root, large)) {
		if _, _, err := decodeObject(must1[[]byte](t)(os.ReadFile(o))); err != nil {
			t.Errorf("%s: %v", o, err)
		}
	}
	if left := s.unfinished(); len(left) != 0 {
		t.Errorf("unfinished uploads: %q", left)
	}
	d.stop()
}

// TestNetworkFaultsLong has fleets and commands suffer what SEED (1) says for DURATION:
// any kinds together, with any probability.
func TestNetworkFaultsLong(t *testing.T) {
	duration, err := time.ParseDuration(os.Getenv("DURATION"))
	if err != nil {
		t.Skip("takes as long as DURATION says")
	}
	seed := uint64(envInt("SEED", 1))
	t.Logf("SEED=%d DURATION=%v", seed, duration)
	s := startS3(t)
	end := time.Now().Add(duration)
	for g := range 4 {
		t.Run(fmt.Sprint("fleet", g), func(t *testing.T) {
			t.Parallel()
			f := newNetworkFleet(t, s, fmt.Sprint("long", g), []string{"http", "https"}[g%2])
			r := newRandomFaults(seed, uint64(g))
			cycles := f.d.stats().Cycles
			for time.Now().Before(end) {
				kinds, probability := r.next()
				what := fmt.Sprintf("%v at %.2f", kinds, probability)
				f.change(1 + r.IntN(8))
				f.p.chaos(r.Int64(), probability, kinds...)
				f.cycles(what, 1+r.IntN(4))
				if r.IntN(3) == 0 {
					f.change(1 + r.IntN(8))
					f.cycles(what, 1)
				}
				f.p.calm()
				f.caughtUp(what)
			}
			cycles = f.d.stats().Cycles - cycles
			f.end()
			t.Logf("%d cycles, %d acknowledgements held against the target; %s", cycles, f.audits, f.p.tally())
		})
	}
	for g := range 2 {
		t.Run(fmt.Sprint("commands", g), func(t *testing.T) {
			t.Parallel()
			f := newInspectedThrough(t, s, fmt.Sprint("longcommands", g))
			r := newRandomFaults(seed, uint64(100+g))
			runs := 0
			for ; time.Now().Before(end); runs++ {
				kinds, probability := r.next()
				if slices.Contains(kinds, faultHang) || slices.Contains(kinds, faultDripAnswer) {
					probability = min(probability, 0.1) // each try takes 30 s
				}
				command := []func(string){f.list, f.restoreOne, f.restoreAll, f.verify, f.sweep, f.purge}[r.IntN(6)]
				f.putOld()
				f.p.chaos(r.Int64(), probability, kinds...)
				command(fmt.Sprintf("run %d, %v at %.2f", runs, kinds, probability))
				f.p.calm()
			}
			t.Logf("%d commands; %s", runs, f.p.tally())
		})
	}
}

// randomFaults decides what is suffered next.
type randomFaults struct{ *rand.Rand }

func newRandomFaults(seed, stream uint64) randomFaults {
	return randomFaults{rand.New(rand.NewPCG(seed, stream))}
}

func (r randomFaults) next() (kinds []faultKind, probability float64) {
	probability = []float64{0.02, 0.1, 0.3, 0.6, 1}[r.IntN(5)]
	n := 1 + r.IntN(4)
	if r.IntN(4) == 0 {
		n = len(allFaults)
	}
	for _, i := range r.Perm(len(allFaults))[:n] {
		// Those that wait for a time-out would be all that is ever waited for.
		if !slices.Contains(slowFaults, allFaults[i]) || r.IntN(10) == 0 {
			kinds = append(kinds, allFaults[i])
		}
	}
	if len(kinds) == 0 {
		kinds = []faultKind{faultTwice}
	}
	return kinds, probability
}
