package multidb

import (
	"math"
	"time"
)

// List prices of S3 Standard in us-east-1, US dollars per request. DELETE is free.
const (
	usdPerPut  = 0.005 / 1000
	usdPerList = 0.005 / 1000
	usdPerGet  = 0.0004 / 1000
)

// usd is what the calls cost at list prices.
func (c apiCalls) usd() float64 {
	return float64(c.put)*usdPerPut + float64(c.list)*usdPerList + float64(c.get)*usdPerGet
}

const day = 24 * time.Hour

const (
	// costHours is how long calls are remembered that are not extrapolated.
	costHours = 24

	// rateWindow is how long the present rate of uploads is taken over, where a
	// database may be uploaded again sooner than that.
	rateWindow = 10 * time.Minute

	// rateCyclesMax bounds how many cycles are remembered for it one by one. With more of
	// them in a period the rate is right to about 2 %.
	rateCyclesMax = 1 << 14
)

// costWindow estimates what a day costs. Uploads of databases that were uploaded
// before go on: they are extrapolated from their present rate. Everything else (first
// backups, sweeps, the owner object, further parts of large objects, requests that
// failed) counts as it was in the last 24 hours.
type costWindow struct {
	start    time.Time
	interval time.Duration // of cycles
	period   time.Duration // from one upload of a database that changes all the time to the next

	total apiCalls // as of the last add
	again uint64   // likewise: uploads that were not the first of their database
	hours [costHours]struct {
		hour  int64
		calls apiCalls
		again uint64
	}

	first, last time.Time      // starts of the first and the last cycle
	cycles      []cycleUploads // those with any, oldest first
}

type cycleUploads struct {
	start time.Time
	again uint64
}

func newCostWindow(start time.Time, cfg *Config) costWindow {
	return costWindow{start: start, interval: cfg.SyncInterval, period: uploadPeriod(cfg)}
}

// uploadPeriod is how often a database that changes all the time is uploaded: once in
// each cycle, or in the first one that begins when min_interval is over.
func uploadPeriod(cfg *Config) time.Duration {
	cycles := (cfg.MinInterval + cfg.SyncInterval - 1) / max(cfg.SyncInterval, 1)
	return max(cycles, 1) * cfg.SyncInterval
}

// add books the cycle that began at start, after which these are the sums.
func (w *costWindow) add(start time.Time, stats coreStats) {
	again := stats.uploadsSuccess - stats.uploadsFirst
	hour := w.hour(start)
	slot := &w.hours[hour%costHours]
	if slot.hour != hour {
		slot.hour, slot.calls, slot.again = hour, apiCalls{}, 0
	}
	slot.calls = slot.calls.add(stats.calls.sub(w.total))
	slot.again += again - w.again
	if w.first.IsZero() {
		w.first = start
	}
	w.last = start
	if again > w.again {
		w.remember(cycleUploads{start, again - w.again})
	}
	w.total, w.again = stats.calls, again
}

func (w *costWindow) remember(c cycleUploads) {
	for len(w.cycles) > 0 && w.cycles[0].start.Before(w.last.Add(-w.periods()*w.period)) {
		w.cycles = w.cycles[1:]
	}
	if len(w.cycles) == rateCyclesMax { // then two by two
		for i := range rateCyclesMax / 2 {
			w.cycles[i] = cycleUploads{w.cycles[2*i].start, w.cycles[2*i].again + w.cycles[2*i+1].again}
		}
		w.cycles = w.cycles[:rateCyclesMax/2]
	}
	w.cycles = append(w.cycles, c)
}

// periods is how many of them the rate is taken over, once so many have been seen.
func (w *costWindow) periods() time.Duration {
	return (rateWindow + w.period - 1) / w.period
}

// putsPerDay extrapolates the uploads that were not the first of their database. It
// looks at whole periods, as all databases may be uploaded in the same cycle of each,
// and leaves out the first cycle, which uploads what has changed before the start, as
// soon as one period is over. Cycles do not begin to the millisecond, so a period ends
// half an interval before its last cycle could.
func (w *costWindow) putsPerDay() float64 {
	seen := min(max(w.last.Sub(w.first)/w.period, 1), w.periods())
	length := seen * w.period
	from := w.last.Add(w.interval/2 - length)
	var again uint64
	for _, c := range w.cycles {
		if c.start.After(from) {
			again += c.again
		}
	}
	return float64(again) * float64(day) / float64(length)
}

// usdPerDay is putsPerDay and everything else of the hour of the last cycle and the
// 23 before it.
func (w *costWindow) usdPerDay() float64 {
	var calls apiCalls
	var again uint64
	hour := w.hour(w.last)
	for i := range w.hours {
		if slot := &w.hours[i]; slot.hour > hour-costHours {
			calls = calls.add(slot.calls)
			again += slot.again
		}
	}
	calls.put -= min(again, calls.put)
	return calls.usd() + w.putsPerDay()*usdPerPut
}

func (w *costWindow) hour(now time.Time) int64 {
	return int64(max(now.Sub(w.start), 0) / time.Hour)
}

// changeCost is what it costs if so many databases change all the time.
type changeCost struct {
	Changing   uint64  `json:"changing"`
	PutsPerDay uint64  `json:"puts_per_day"`
	USDPerDay  float64 `json:"usd_per_day"`
}

func newChangeCost(cfg *Config, changing uint64) changeCost {
	puts := math.Round(float64(changing) * float64(day) / float64(uploadPeriod(cfg)))
	return changeCost{changing, uint64(puts), puts * usdPerPut}
}
