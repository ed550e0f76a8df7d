package multidb

import (
	"os"
	"path/filepath"
	"time"
)

// lastCycleFile is in the state directory: what `replicate` leaves for `status` and `plan`.
const lastCycleFile = "last-cycle.json"

// lastCycle is what a completed cycle did, and where it spent its time.
type lastCycle struct {
	LastScan      string       `json:"last_scan"` // RFC 3339: the start of its scan
	Databases     uint64       `json:"databases"`
	Changed       uint64       `json:"changed"`
	Unsynced      uint64       `json:"unsynced"`
	Failed        uint64       `json:"failed"`
	CycleSeconds  float64      `json:"cycle_seconds"`
	StageSeconds  stageSeconds `json:"stage_seconds"`
	CostUSDPerDay float64      `json:"cost_usd_per_day"`
	PutsPerDay    float64      `json:"puts_per_day"`
}

func newLastCycle(s *snapshot) lastCycle {
	return lastCycle{
		LastScan:      *formatTime(s.lastScan),
		Databases:     s.databases,
		Changed:       s.changedLastCycle,
		Unsynced:      s.unsynced,
		Failed:        s.databasesFailed,
		CycleSeconds:  s.cycleSeconds,
		StageSeconds:  s.stages,
		CostUSDPerDay: s.costUSDPerDay,
		PutsPerDay:    s.putsPerDay,
	}
}

// readLastCycle returns nil where no cycle has left anything that can be used.
func readLastCycle(cfg *Config) *lastCycle {
	dir, err := cfg.stateDirectory()
	if err != nil {
		return nil
	}
	path := filepath.Join(dir, lastCycleFile)
	info, err := os.Lstat(path)
	if err != nil {
		return nil
	}
	var c lastCycle
	if !readReport(path, info, &c) {
		return nil
	}
	if _, err := time.Parse(time.RFC3339, c.LastScan); err != nil {
		return nil
	}
	return &c
}
