package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

var fakeClock = sync.OnceValues(func() (string, error) { return preload("fakeclock") })

// preload compiles testdata/NAME.c to a library for LD_PRELOAD.
func preload(name string) (string, error) {
	so := filepath.Join(sharedDir, name+".so")
	out, err := exec.Command("gcc", "-shared", "-fPIC", "-O1", "-o", so, "testdata/"+name+".c").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("gcc %s.c: %v\n%s", name, err, out)
	}
	return so, nil
}

// history is one database under an injected clock, and a model of what the target
// must hold after each step.
type history struct {
	*one
	state   string
	clock   string
	so      string
	offset  time.Duration
	window  string
	hashes  map[string][32]byte // of objects, by name, as of the last step
	highest string
	version int
}

func newHistory(t *testing.T) *history {
	t.Helper()
	h := &history{one: newOne(t), state: t.TempDir(), so: must1[string](t)(fakeClock()), window: "1h", hashes: map[string][32]byte{}}
	h.clock = filepath.Join(t.TempDir(), "offset")
	h.make("x")
	return h
}

func (h *history) config() settings {
	c := h.c
	c.keys = []string{"state_dir: " + h.state, "snapshot_window: " + h.window, "retention: 0s"}
	return c
}

// cycle runs one cycle at real time + offset.
func (h *history) cycle() {
	h.t.Helper()
	must(h.t, os.WriteFile(h.clock, fmt.Append(nil, int64(h.offset/time.Second)), 0o644))
	once(h.t, h.config(), withEnv("LD_PRELOAD="+h.so, "E2E_CLOCK="+h.clock))
}

func (h *history) loseState() {
	h.t.Helper()
	entries := must1[[]os.DirEntry](h.t)(os.ReadDir(h.state))
	for _, e := range entries {
		must(h.t, os.RemoveAll(filepath.Join(h.state, e.Name())))
	}
}

// upload commits a change, runs a cycle (and a second one, as point 2 allows), and
// holds the target to the rules.
func (h *history) upload(what string) {
	h.t.Helper()
	h.version++
	build(h.t, h.path("x"), fmt.Sprintf("UPDATE t SET v='version %d' WHERE id=1", h.version))
	h.cycle()
	want := sqliteImage(h.t, h.path("x"))
	if img, _ := newest(h.t, h.target, h.key("x")); compareBytes(want, img) != nil {
		h.cycle()
	}
	h.verify(fmt.Sprintf("version %d, %s", h.version, what), want)
}

func (h *history) verify(what string, want []byte) {
	h.t.Helper()
	objs := objects(h.t, h.target, h.key("x"))
	now := map[string][32]byte{}
	var images [][]byte
	var times []time.Time
	for i, p := range objs {
		b := must1[[]byte](h.t)(os.ReadFile(p))
		name := filepath.Base(p)
		now[name] = sha256.Sum256(b)
		if was, ok := h.hashes[name]; ok && was != now[name] && i != len(objs)-1 {
			h.t.Errorf("%s: %s was overwritten though a newer name exists", what, name)
		} else if ok && was != now[name] && name != h.highest {
			h.t.Errorf("%s: %s was overwritten, which is not the newest name before, %s", what, name, h.highest)
		}
		img, tr, err := decodeObject(b)
		must(h.t, err)
		at := must1[time.Time](h.t)(time.Parse(time.RFC3339Nano, tr.SnapshotTime))
		if i > 0 && !at.After(times[i-1]) {
			h.t.Errorf("%s: %s has snapshot time %v, the one before it by name %v", what, name, at, times[i-1])
		}
		images, times = append(images, img), append(times, at)
	}
	for name := range h.hashes {
		if _, ok := now[name]; !ok {
			h.t.Errorf("%s: %s has gone", what, name)
		}
	}
	last := filepath.Base(objs[len(objs)-1])
	if last < h.highest {
		h.t.Errorf("%s: newest name %s, was %s", what, last, h.highest)
	}
	h.hashes, h.highest = now, last
	if err := compareBytes(want, images[len(images)-1]); err != nil {
		h.t.Errorf("%s: the newest name does not hold the newest state: %v (%d objects, newest %s)", what, err, len(objs), last)
	}
	config := h.config().write(h.t, 0)
	if err := compareImage(want, restore(h.t, config, h.path("x"))); err != nil {
		h.t.Errorf("%s: restore of the newest: %v", what, err)
	}
	// Every point in time: at each snapshot, and just before it.
	for i, at := range times {
		out := restore(h.t, config, h.path("x"), "-timestamp", at.Format(time.RFC3339Nano))
		if err := compareImage(images[i], out); err != nil {
			h.t.Errorf("%s: restore at %v: %v", what, at, err)
		}
		before := at.Add(-time.Nanosecond).Format(time.RFC3339Nano)
		if i == 0 {
			if r := tryRestore(h.t, config, h.path("x"), filepath.Join(h.t.TempDir(), "x"), "-timestamp", before); r.code != 1 {
				h.t.Errorf("%s: restore before the first snapshot: exit %d", what, r.code)
			}
		} else if err := compareImage(images[i-1], restore(h.t, config, h.path("x"), "-timestamp", before)); err != nil {
			h.t.Errorf("%s: restore just before %v: %v", what, at, err)
		}
	}
}

// Point 12: names only grow.
func Test12NamesOnlyGrow(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	at := func(d time.Duration, what string) {
		t.Helper()
		h.offset = d
		h.upload(fmt.Sprintf("window %s, clock +%v, %s", h.window, d, what))
	}
	count := func(n int, what string) {
		t.Helper()
		if got := len(h.hashes); got != n {
			t.Errorf("%s: %d objects, want %d", what, got, n)
		}
	}
	const s, hour = time.Second, time.Hour
	at(0, "first")
	count(1, "first")
	at(10*s, "second")
	count(2, "the first object is not overwritten by the second")
	at(20*s, "third")
	at(30*s, "fourth")
	if n := len(h.hashes); n > 3 { // a full hour may pass in between
		t.Errorf("four uploads within a window: %d objects", n)
	}
	at(hour, "an hour later")
	at(hour+10*s, "the same hour")
	n := len(h.hashes)

	h.window = "24h"
	at(2*hour, "window changed to 24h")
	at(3*hour, "the same day or the next")
	if got := len(h.hashes) - n; got > 2 {
		t.Errorf("two uploads in a window of 24h: %d objects more", got)
	}
	at(30*hour, "the next day")
	n = len(h.hashes)

	h.window = "0s"
	at(30*hour+10*s, "window changed to 0s")
	at(30*hour+20*s, "again")
	at(30*hour+30*s, "again")
	count(n+3, "with a window of 0s every upload has its name")

	h.window = "1h"
	at(30*hour+40*s, "window back to 1h")
	at(31*hour, "an hour on")
	at(32*hour, "two hours on")

	at(8*hour, "clock a day back")
	at(8*hour+10*s, "clock a day back")
	h.window = "0s"
	at(8*hour+20*s, "clock a day back")
	at(8*hour+30*s, "clock a day back")
	h.window = "1h"
	at(33*hour, "clock right again")

	h.loseState()
	at(33*hour+10*s, "state lost")
	at(33*hour+20*s, "state lost")
	at(34*hour, "an hour on")
}

// The state is lost while the clock stands a day back.
func Test12StateLostWithClockBack(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.upload("first")
	h.offset = 26 * time.Hour
	h.upload("a day on")
	h.offset = 2 * time.Hour
	h.loseState()
	h.upload("clock back, state lost")
	h.upload("again")
}

// An image of less than half the size does not replace the one before.
func Test12Shrunk(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.window = "24h"
	// Far from the edges of a window: the middle of a day.
	day := 24 * time.Hour
	h.offset = day - time.Since(time.Now().Truncate(day)) + 8*time.Hour
	step := func(what string) {
		t.Helper()
		h.offset += 10 * time.Second
		h.upload(what)
	}
	step("first")
	step("second")
	fill(t, h.path("x"), 2000)
	step("large")
	large := sqliteImage(t, h.path("x"))
	n := len(h.hashes)
	build(t, h.path("x"), "DELETE FROM t WHERE id>5", "VACUUM")
	step("small")
	if len(h.hashes) != n+1 {
		t.Errorf("%d objects before the shrink, %d after", n, len(h.hashes))
	}
	objs := objects(t, h.target, h.key("x"))
	img, _, err := decodeObject(must1[[]byte](t)(os.ReadFile(objs[len(objs)-2])))
	must(t, err)
	if err := compareBytes(large, img); err != nil {
		t.Errorf("the object before the shrink: %v", err)
	}
	step("small again")
	if len(h.hashes) != n+1 {
		t.Errorf("a second small image in the same window: %d objects, want %d", len(h.hashes), n+1)
	}
	fill(t, h.path("x"), 2000)
	step("large again")
}
