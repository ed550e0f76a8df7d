package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Two replicators that would write to the same keys of one target.

// another is c as a second machine has it: a state directory of its own.
func another(t testing.TB, c settings) settings {
	c.keys = append(append([]string{}, c.keys...), "state_dir: "+filepath.Join(t.TempDir(), "state"))
	return c
}

var refusal = regexp.MustCompile(`host \\?"([^"\\]+)\\?", process (\d+), started (\S+),`)

// wantRefused starts replicate, which must end with the name of d.
func wantRefused(t testing.TB, d *daemon, c settings, args ...string) {
	t.Helper()
	c.noHTTP = true
	r := litestream(t, append([]string{"replicate", "-config", c.write(t, 0)}, args...))
	m := refusal.FindStringSubmatch(r.all())
	if r.code != 1 || m == nil {
		t.Fatalf("replicate %v beside another one: exit %d\n%s", args, r.code, r.all())
	}
	host, err := os.Hostname()
	must(t, err)
	started, err := time.Parse(time.RFC3339Nano, m[3])
	if m[1] != host || m[2] != fmt.Sprint(d.cmd.Process.Pid) || err != nil || time.Since(started) > 10*time.Minute {
		t.Errorf("refused by host %s, process %s, started %s; want %s, %d", m[1], m[2], m[3], host, d.cmd.Process.Pid)
	}
}

func Test33SecondIsRefused(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	fileDir := filepath.Join(t.TempDir(), "backup")
	for name, target := range map[string]string{
		"s3":   s.target(s.url()),
		"file": block("file", "directory: "+fileDir, `path: "`+seedTemplate+`"`),
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			paths := makeFleet(t, root, 20)
			c := settings{pattern: seedPattern(root), interval: "1s", target: target}
			first := replicate(t, c)
			first.waitSynced(30 * time.Second)
			mark := s.mark()
			wantRefused(t, first, another(t, c))
			wantRefused(t, first, another(t, c), "-once")
			wantRefused(t, first, another(t, c), "-once", "-enforce-retention")
			if got := s.counts(mark); got != (counts{}) {
				t.Errorf("the refused ones: the server counts %+v", got)
			}
			// It does not have the first one's state, so what it says is its own.
			change(t, paths[3])
			st := first.wait(30*time.Second, "the change", func(st stats) bool { return st.UploadsSuccess == 21 && st.Unsynced == 0 })
			if st.DatabasesFailed != 0 {
				t.Errorf("the first one: %+v", st)
			}

			// Given back at its end: nobody has to wait.
			first.stop()
			second := replicate(t, another(t, c))
			second.waitSynced(30 * time.Second)

			// Killed: a process that is gone has nothing.
			second.kill()
			third := another(t, c)
			r := once(t, third)
			if strings.Contains(r.all(), "another replicator") {
				t.Errorf("after a kill:\n%s", r.all())
			}

			// A command that only reads is nobody's rival, and sees no more than backups.
			r = litestream(t, []string{"multi-db", "list", "-json", "-config", third.write(t, 0)})
			if r.code != 0 || strings.Contains(r.stdout, "owner-") || !strings.Contains(r.stdout, `"foreign_objects":0`) {
				t.Errorf("list: exit %d\n%s", r.code, tail(r.all(), 2000))
			}
		})
	}
}

func Test33Takeover(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := t.TempDir()
	paths := makeFleet(t, root, 20)
	c := settings{pattern: seedPattern(root), interval: "1s", target: s.target(s.url())}
	first := replicate(t, c)
	first.waitSynced(30 * time.Second)
	second := another(t, c)
	second.noHTTP = true
	r := litestream(t, []string{"replicate", "-once", "-takeover", "-config", second.write(t, 0)})
	if r.code != 0 {
		t.Fatalf("-takeover: exit %d\n%s", r.code, r.all())
	}
	verifyTarget(t, root, s.dir(), paths)
	first.kill()

	r = litestream(t, []string{"replicate", "-takeover", "-config", settings{target: "dbs: []"}.write(t, 0)})
	if r.code == 0 || !strings.Contains(r.all(), "-takeover") {
		t.Errorf("-takeover without multi_db: exit %d\n%s", r.code, r.all())
	}
}

// Of those that start at once, one has it.
func Test33Race(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := t.TempDir()
	makeFleet(t, root, 3)
	c := settings{pattern: seedPattern(root), interval: "1s", target: s.target(s.url())}
	for range 3 {
		must(t, os.RemoveAll(filepath.Join(s.dir(), ".litestream-multi-db")))
		racers := make([]*daemon, 4)
		for i := range racers {
			port := freePort(t)
			racers[i] = replicateConfig(t, another(t, c).write(t, port), port)
		}
		winners := 0
		for _, d := range racers {
			waitFor(t, 60*time.Second, "an end, or a cycle", func() bool {
				st, err := d.tryStats()
				return d.dead() || err == nil && st.Cycles > 0
			})
			if d.dead() {
				if !refusal.MatchString(d.output()) {
					t.Errorf("ended for another reason:\n%s", tail(d.output(), 2000))
				}
			} else if st := d.stats(); st.Unsynced == 0 && st.UploadsSuccess > 0 {
				winners++
			}
		}
		if winners != 1 {
			t.Errorf("%d of %d have uploaded", winners, len(racers))
		}
		for _, d := range racers {
			d.kill()
		}
	}
}

// A state directory that goes back with its machine: the objects that came after are
// looked at before anything is uploaded, though no sweep is due.
func Test33RolledBack(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := t.TempDir()
	paths := makeFleet(t, root, 30)
	stateDir := filepath.Join(t.TempDir(), "state")
	c := settings{pattern: seedPattern(root), interval: "1s", target: s.target(s.url()), keys: []string{"state_dir: " + stateDir}}
	once(t, c)
	saved := filepath.Join(t.TempDir(), "saved")
	run2(t, "cp", "-a", stateDir, saved)
	for _, p := range paths[:5] {
		change(t, p)
	}
	d := replicate(t, c)
	d.waitSynced(30 * time.Second)
	d.stop()
	before := map[string]string{}
	for _, p := range paths {
		names := objects(t, s.dir(), keyOf(root, p))
		before[p] = names[len(names)-1]
	}

	must(t, os.RemoveAll(stateDir))
	run2(t, "cp", "-a", saved, stateDir)
	change(t, paths[5])
	mark := s.mark()
	d = replicate(t, c)
	d.waitSynced(30 * time.Second)
	d.waitCycles(2, 30*time.Second)
	d.stop()
	if got := s.counts(mark); got.list != 1 || got.put == 0 {
		t.Errorf("after a rollback the server counts %+v", got)
	}
	for _, p := range paths[:6] {
		names := objects(t, s.dir(), keyOf(root, p))
		if last := names[len(names)-1]; last <= before[p] {
			t.Errorf("%s: newest object %s, %s before the rollback", p, last, before[p])
		}
		if !exists(filepath.Join(s.dir(), keyOf(root, p), filepath.Base(before[p]))) {
			t.Errorf("%s: %s is gone", p, before[p])
		}
	}
	verifyTarget(t, root, s.dir(), paths)

	mark = s.mark()
	d = replicate(t, c)
	d.waitCycles(2, 30*time.Second)
	d.stop()
	if got := s.counts(mark); got != (counts{}) {
		t.Errorf("the start after that: the server counts %+v", got)
	}
}

// Credentials for the keys of databases only: backed up all the same, and said.
func Test33Unguarded(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := t.TempDir()
	paths := makeFleet(t, root, 10)
	p := startProxy(t, s.hostPort(), nil)
	p.set(func(_ int64, r *http.Request) int {
		if strings.Contains(r.URL.Path, "/.litestream-multi-db/") {
			return http.StatusForbidden
		}
		return 0
	})
	c := settings{pattern: seedPattern(root), interval: "1s", target: s.target(p.url())}
	d := replicate(t, c)
	d.waitSynced(30 * time.Second)
	d.waitCycles(2, 30*time.Second)
	var st struct{ Owner string }
	must(t, d.json("/stats", &st))
	if n := strings.Count(d.output(), "would not be noticed"); st.Owner != "unguarded" || n != 1 {
		t.Errorf("owner %q, said %d times", st.Owner, n)
	}
	d.stop()
	verifyTarget(t, root, s.dir(), paths)
}

// What stands between the second one and the target tells it untruths about the owner
// object, and passes everything else on: the first one's word is not written over.
func Test33Untruths(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := t.TempDir()
	paths := makeFleet(t, root, 5)
	c := settings{pattern: seedPattern(root), interval: "1s", target: s.target(s.url())}
	first := replicate(t, c)
	first.waitSynced(30 * time.Second)
	owner := must1[[]string](t)(filepath.Glob(filepath.Join(s.dir(), ".litestream-multi-db", "owner-*")))[0]
	before := regexp.MustCompile(`(?m)^run .*$`).Find(must1[[]byte](t)(os.ReadFile(owner)))
	p := startProxy(t, s.hostPort(), nil)
	isOwnerGet := func(r *http.Request) bool {
		return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/.litestream-multi-db/")
	}
	for _, kind := range []faultKind{faultOKPage, faultOKError, faultOKEmpty, faultNoKey, fault404Empty} {
		p.chaosFor(isOwnerGet, 1, 1, kind)
		second := another(t, c)
		second.noHTTP, second.target = true, s.target(p.url())
		change(t, paths[0])
		r := litestream(t, []string{"replicate", "-once", "-config", second.write(t, 0)})
		p.calm()
		after := regexp.MustCompile(`(?m)^run .*$`).Find(must1[[]byte](t)(os.ReadFile(owner)))
		if r.code == 0 || string(after) != string(before) {
			t.Errorf("%s: exit %d, the owner's %q is now %q\n%s", kind, r.code, before, after, r.all())
		}
	}
	if n := p.suffered()[faultOKPage]; n == 0 {
		t.Error("no page was served")
	}
}

// An owner object that is cut off on the way, whole by all that HTTP says, is asked for
// again; if it stays so, nobody knows whose the target is.
func Test33CutOff(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := t.TempDir()
	paths := makeFleet(t, root, 3)
	p := startProxy(t, s.hostPort(), nil)
	c := settings{pattern: seedPattern(root), interval: "1s", noHTTP: true, target: s.target(p.url())}
	once := []string{"replicate", "-once", "-config", c.write(t, 0)}
	if r := litestream(t, once); r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.all())
	}
	for _, tt := range []struct{ cuts, exit int }{{1, 0}, {1000, 1}} {
		left := tt.cuts
		p.chaosFor(func(r *http.Request) bool { // one at a time: under the proxy's lock
			is := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/.litestream-multi-db/") && left > 0
			if is {
				left--
			}
			return is
		}, 1, 1, faultLengthShort)
		change(t, paths[0])
		r := litestream(t, once)
		p.calm()
		if r.code != tt.exit || left == tt.cuts || (tt.exit != 0) != strings.Contains(r.all(), "or damaged") {
			t.Errorf("%d cut off, %d of them asked for: exit %d\n%s", tt.cuts, tt.cuts-left, r.code, r.all())
		}
	}
}
