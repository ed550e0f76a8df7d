package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Point 4: stop, start, nothing changed: the server hears nothing.
func Test04RestartCostsNothing(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := t.TempDir()
	paths := makeFleet(t, root, 300)
	w := newWriter(t)
	for _, p := range paths[:10] {
		w.open(p, "WAL", "PRAGMA wal_autocheckpoint=0")
		w.exec(p, "UPDATE t SET tag='open' WHERE id=1")
	}
	c := settings{pattern: seedPattern(root), interval: "1s", target: s.target(s.url())}
	d := replicate(t, c)
	d.waitSynced(60 * time.Second)
	d.waitCycles(2, 30*time.Second)
	d.stop()
	mark := s.mark()
	d = replicate(t, c)
	st := d.waitCycles(3, 30*time.Second)
	if st.UploadsSuccess != 0 || st.ChangedLastCycle != 0 || st.Databases != 300 || st.Unsynced != 0 {
		t.Errorf("after a restart with nothing changed: %+v", st)
	}
	d.stop()
	if got := s.counts(mark); got != (counts{}) {
		t.Errorf("after a restart with nothing changed the server counts %+v", got)
	}
	verifyTarget(t, root, s.dir(), paths)

	// What changes while nobody looks is found at the start.
	change(t, paths[200])
	w.exec(paths[3], "UPDATE t SET tag='changed' WHERE id=1")
	mark = s.mark()
	d = replicate(t, c)
	d.waitSynced(30 * time.Second)
	if got := s.counts(mark); got.put != 2 || got.list != 0 {
		t.Errorf("two databases changed while stopped; the server counts %+v", got)
	}
	verifyTarget(t, root, s.dir(), paths)
	d.stop()
	w.quit()
}

// SIGKILL in the middle of the first sync of 5,000.
func Test04KilledInFirstSync(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := t.TempDir()
	paths := makeFleet(t, root, 5000)
	c := settings{pattern: seedPattern(root), interval: "1s", target: s.target(s.url(), "max_concurrent_uploads: 20")}
	d := replicate(t, c)
	waitFor(t, 120*time.Second, "1,500 uploads", func() bool { return s.counts(0).putOK >= 1500 })
	d.kill()
	var first map[string]int
	stable := -1
	waitFor(t, 10*time.Second, "the server to finish", func() bool { // requests it has already read
		n := s.mark()
		same := n == stable
		stable = n
		first = putKeys(s, 0)
		return same
	})
	mark := s.mark()
	if len(first) >= 5000 {
		t.Fatal("everything was uploaded before the kill: the test shows nothing")
	}
	d = replicate(t, c)
	st := d.waitSynced(120 * time.Second)
	second := putKeys(s, mark)
	twice := 0
	for k := range second {
		if first[k] > 0 {
			twice++
		}
	}
	t.Logf("%d before the kill, %d after, %d twice", len(first), len(second), twice)
	// A state commit comes every 1,000 acknowledgements (or 5 s): what came after the
	// last one, and what was in flight, may go twice.
	if twice > 1000+20 {
		t.Errorf("%d databases were uploaded twice", twice)
	}
	if len(first) >= 1020 && twice >= len(first) {
		t.Error("nothing of the first sync was remembered")
	}
	if st.Databases != 5000 || st.UploadsSuccess != len(second) {
		t.Errorf("%d keys put, /stats: %+v", len(second), st)
	}
	for k, n := range second {
		if n > 1 {
			t.Errorf("%s was put %d times after the restart", k, n)
		}
	}
	verifyTarget(t, root, s.dir(), paths)
	d.stop()
}

// putKeys returns how often each database's key prefix was put with success.
func putKeys(s *s3server, from int) map[string]int {
	reqs, _ := s.requests(from)
	out := map[string]int{}
	for _, r := range reqs {
		if r.op == "s3_PutObject" && r.status == 200 {
			out[filepath.Dir(r.uri)]++
		}
	}
	return out
}

// A state file that is lost, damaged or another target's: a line in the log and a
// full upload.
func Test04StateFile(t *testing.T) {
	t.Parallel()
	root, state := t.TempDir(), t.TempDir()
	paths := makeFleet(t, root, 60)
	file := filepath.Join(state, "state.db")
	first := t.TempDir()
	config := func(target string) settings {
		return settings{pattern: seedPattern(root), interval: "1s", target: fileTarget(target), keys: []string{"state_dir: " + state}}
	}
	target := first
	once(t, config(first))
	for _, tt := range []struct {
		name   string
		damage func()
		clean  bool
	}{
		{name: "untouched", damage: func() {}, clean: true},
		{name: "deleted", damage: func() {
			for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
				_ = os.Remove(file + suffix)
			}
		}},
		{name: "emptied", damage: func() { must(t, os.Truncate(file, 0)) }},
		{name: "cut in half", damage: func() {
			must(t, os.Truncate(file, must1[os.FileInfo](t)(os.Stat(file)).Size()/2))
		}},
		{name: "garbage", damage: func() { must(t, os.WriteFile(file, []byte(strings.Repeat("garbage ", 4000)), 0o600)) }},
		{name: "a directory's worth of zeros", damage: func() { must(t, os.WriteFile(file, make([]byte, 40960), 0o600)) }},
		{name: "another target", damage: func() { target = t.TempDir() }},
	} {
		if !exists(file) {
			t.Fatalf("no %s", file)
		}
		tt.damage()
		d := replicate(t, config(target))
		st := d.waitSynced(30 * time.Second)
		if tt.clean {
			if st.UploadsSuccess != 0 {
				t.Errorf("%s: %d uploads", tt.name, st.UploadsSuccess)
			}
		} else if st.UploadsSuccess != 60 || st.UploadsFailed != 0 {
			t.Errorf("state file %s: %d uploads, %d failed, want 60 and 0", tt.name, st.UploadsSuccess, st.UploadsFailed)
		}
		d.stop()
		said := false
		for line := range strings.SplitSeq(d.output(), "\n") {
			if strings.Contains(line, "state") && !strings.Contains(line, "msg=litestream ") {
				said = said || strings.Contains(line, "multi")
				t.Logf("%s: %s", tt.name, line)
			}
		}
		if said == tt.clean {
			t.Errorf("state file %s: a log line about it: %v\n%s", tt.name, said, tail(d.output(), 3000))
		}
		verifyTarget(t, root, target, paths)
		once(t, config(target))
	}
}

// A second process on the same state is refused and told who holds it.
func Test04SecondProcess(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	makeFleet(t, root, 5)
	c := settings{pattern: seedPattern(root), interval: "1s", target: fileTarget(t.TempDir())}
	d := replicate(t, c)
	d.waitSynced(20 * time.Second)
	for _, args := range [][]string{{"replicate"}, {"replicate", "-once"}} {
		r := litestream(t, append(args, "-config", c.write(t, freePort(t))))
		if r.code != 1 || !strings.Contains(r.stderr, fmt.Sprint(d.cmd.Process.Pid)) {
			t.Errorf("second %v: exit %d, want 1 and the pid %d in\n%s", args, r.code, d.cmd.Process.Pid, r.all())
		}
	}
	// Commands that only read take no lock.
	st := d.waitCycles(1, 20*time.Second)
	if st.DatabasesFailed != 0 {
		t.Errorf("%+v", st)
	}
	config := c.write(t, 0)
	for _, args := range [][]string{{"multi-db", "plan"}, {"multi-db", "status"}} {
		if r := litestream(t, append(args, "-config", config)); r.code != 0 {
			t.Errorf("%v beside a running replicate: exit %d\n%s", args, r.code, r.all())
		}
	}
	d.stop()
}
