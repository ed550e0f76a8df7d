package multidb

import (
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// costDays is a costWindow with a clock of its own.
type costDays struct {
	t     *testing.T
	cfg   *Config
	w     costWindow
	start time.Time // of the next cycle, as it should be
	stats coreStats
}

func newCostDays(t *testing.T, interval, minInterval time.Duration) *costDays {
	cfg := &Config{SyncInterval: interval, MinInterval: minInterval}
	start := time.Now()
	return &costDays{t: t, cfg: cfg, w: newCostWindow(start, cfg), start: start}
}

// cycle uploads so many databases for the first time, and so many once more.
func (m *costDays) cycle(first, again uint64) { m.cycleAt(m.start, first, again) }

func (m *costDays) cycleAt(start time.Time, first, again uint64) {
	m.stats.uploadsFirst += first
	m.stats.uploadsSuccess += first + again
	m.stats.calls.put += first + again
	m.w.add(start, m.stats)
	m.start = m.start.Add(m.cfg.SyncInterval)
}

func (m *costDays) want(puts, usd float64) {
	m.t.Helper()
	if got := m.w.putsPerDay(); math.Abs(got-puts) > 1e-6 {
		m.t.Fatalf("after %s: %v PUT a day, want %v", m.w.last.Sub(m.w.first), got, puts)
	}
	if got := m.w.usdPerDay(); math.Abs(got-usd) > 1e-9 {
		m.t.Fatalf("after %s: $%v a day, want $%v", m.w.last.Sub(m.w.first), got, usd)
	}
}

// 1,000 of 100,000 databases change all the time.
func TestCostWindow_EveryCycle(t *testing.T) {
	m := newCostDays(t, 30*time.Second, 0)
	m.cycle(100000, 0)
	m.want(0, 0.50)
	for m.w.last.Sub(m.w.first) < 24*time.Hour {
		m.cycle(0, 1000)
		if m.w.hour(m.w.last) < 24 {
			m.want(2880000, 14.40+0.50)
		}
	}
	m.want(2880000, 14.40)
	for range 20 { // they stop: so does the cost, but not what was paid
		m.cycle(0, 0)
	}
	m.want(0, 0)
}

func TestCostWindow_MinInterval(t *testing.T) {
	m := newCostDays(t, 30*time.Second, 30*time.Minute)
	m.cycle(100000, 0)
	m.want(0, 0.50)
	for range 59 {
		m.cycle(0, 0)
	}
	for i := range 24*120 + 59 {
		if i%60 == 0 {
			m.cycle(0, 1000)
		} else {
			m.cycle(0, 0)
		}
		if m.w.hour(m.w.last) < 24 {
			m.want(48000, 0.24+0.50)
		} else {
			m.want(48000, 0.24)
		}
	}
}

// After a restart the first cycle uploads them all, or each one uploads its share.
func TestCostWindow_Restart(t *testing.T) {
	m := newCostDays(t, 30*time.Second, 30*time.Minute)
	for i := range 200 {
		if i%60 == 0 {
			m.cycle(0, 1000)
		} else {
			m.cycle(0, 0)
		}
		m.want(48000, 0.24)
	}
	m = newCostDays(t, 30*time.Second, 30*time.Minute)
	for i := range 200 {
		m.cycle(0, 20)
		if i >= 60 {
			m.want(57600, 0.288)
		}
	}
}

// Cycles begin a little late, sometimes, and then a little early.
func TestCostWindow_Jitter(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	m := newCostDays(t, time.Second, 10*time.Second)
	for i := range 5000 {
		late := time.Duration(r.IntN(80)) * time.Millisecond
		if i == 0 {
			m.cycleAt(m.start.Add(late), 100, 0)
		} else if i%10 == 0 {
			m.cycleAt(m.start.Add(late), 0, 100)
		} else {
			m.cycleAt(m.start.Add(late), 0, 0)
		}
		if i >= 10 {
			m.want(864000, 4.32+0.0005)
		}
	}
}

// An interval that is no whole number of cycles ends with one.
func TestUploadPeriod(t *testing.T) {
	for _, tt := range []struct{ interval, minInterval, want time.Duration }{
		{30 * time.Second, 0, 30 * time.Second},
		{30 * time.Second, time.Second, 30 * time.Second},
		{30 * time.Second, 30 * time.Second, 30 * time.Second},
		{30 * time.Second, 31 * time.Second, time.Minute},
		{30 * time.Second, 30 * time.Minute, 30 * time.Minute},
		{7 * time.Second, time.Minute, 63 * time.Second},
	} {
		if got := uploadPeriod(&Config{SyncInterval: tt.interval, MinInterval: tt.minInterval}); got != tt.want {
			t.Errorf("%s, %s: %s, want %s", tt.interval, tt.minInterval, got, tt.want)
		}
	}
}

// A sweep, and requests that failed, count once.
func TestCostWindow_NotExtrapolated(t *testing.T) {
	m := newCostDays(t, 30*time.Second, 0)
	m.cycle(0, 10)
	m.stats.calls = m.stats.calls.add(apiCalls{put: 990, get: 10000, list: 2000, delete: 5000})
	m.cycle(0, 10)
	m.want(28800, 0.144+0.00495+0.004+0.01)
	for m.w.hour(m.w.last) < 24 {
		m.cycle(0, 10)
	}
	m.want(28800, 0.144)
}

// Where there are more cycles in a period than are remembered one by one.
func TestCostWindow_ManyCycles(t *testing.T) {
	m := newCostDays(t, time.Second, 24*time.Hour)
	for range 3 * 86400 {
		m.cycle(0, 2)
	}
	if got := m.w.putsPerDay(); math.Abs(got/(2*86400)-1) > 0.02 || len(m.w.cycles) > rateCyclesMax {
		t.Errorf("%v PUT a day from %d cycles", got, len(m.w.cycles))
	}
}

func TestPlanCost(t *testing.T) {
	cfg := &Config{DiscoveryPattern: "/data/*.db", SyncInterval: 30 * time.Second, MinInterval: 30 * time.Minute,
		StateDir: t.TempDir(), S3: &S3Config{Bucket: "b"}}
	cost := newPlanOutput(cfg, planResult{databases: 100001, badNames: 1}).Cost
	for i, want := range []changeCost{{1000, 48000, 0.24}, {10000, 480000, 2.40}, {100000, 4800000, 24}} {
		if got := cost.IfChanging[i]; got.Changing != want.Changing || got.PutsPerDay != want.PutsPerDay || math.Abs(got.USDPerDay-want.USDPerDay) > 1e-9 {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	if cost.Present != nil || len(cost.IfChanging) != 3 {
		t.Errorf("%+v", cost)
	}
	cfg.MinInterval = 0
	if got := changeCosts(cfg, 5); len(got) != 2 || got[0].Changing != 1 || got[0].PutsPerDay != 2880 || got[1].Changing != 5 {
		t.Errorf("%+v", got)
	}
	if got := changeCosts(cfg, 0); len(got) != 0 {
		t.Errorf("%+v", got)
	}

	path := filepath.Join(cfg.StateDir, "last-cycle.json")
	for _, tt := range []struct {
		content string
		want    *presentCost
	}{
		{`{"last_scan": "2026-01-02T15:04:05.000Z", "cost_usd_per_day": 0.25, "puts_per_day": 48000.5, "other": 1}`, &presentCost{PutsPerDay: 48000.5, USDPerDay: 0.25}},
		{`{"cost_usd_per_day": 0.25, "puts_per_day": 48000}`, nil},
		{`{"last_scan": "2026-01-02T15:04:05.000Z", "puts_per_day": "x"}`, nil},
		{`{`, nil},
	} {
		if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got := readPresentCost(cfg)
		if (got == nil) != (tt.want == nil) || got != nil && (got.PutsPerDay != tt.want.PutsPerDay || got.USDPerDay != tt.want.USDPerDay || got.Time == "") {
			t.Errorf("%s: %+v", tt.content, got)
		}
	}
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	if got := readPresentCost(cfg); got != nil {
		t.Errorf("a directory: %+v", got)
	}
}
