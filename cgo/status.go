package multidb

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

const statusHelp = `compares the files on disk with the state that
replicate keeps, and with what is in the target. It does not ask a running
replicate, whose /stats knows more about failures.

It exits with 1 if nothing matches, if a database has never been backed up, if
one that was is not in the target, if the target cannot be listed, or if a file
could not be looked at. Changes since the last backup are normal.

Output:
  databases         Files that match the discovery pattern
  synced            Unchanged since their last backup
  changed           Backed up before, changed or failing now
  never             Not backed up yet, new or failing from the start
  not databases     Empty files, and files that are no SQLite database
  last backup       Time in the name of the newest backup, by the state
  last cycle        Start of the last cycle of replicate, how long it took, and
                    what its stages took, summed over threads
  in target         Databases that have backups
  newest in target  Time in the name of the newest of these
  gone locally      Databases that have backups and are not on disk
  not in target     Files on disk without any backup`

// statusOutput is the JSON form of `status`.
type statusOutput struct {
	Databases    uint64  `json:"databases"`
	Synced       uint64  `json:"synced"`
	Changed      uint64  `json:"changed"`
	Never        uint64  `json:"never"`
	NotDatabases uint64  `json:"not_databases"`
	LastBackup   *string `json:"last_backup"` // null: none
	BadNames     uint64  `json:"bad_names"`
	WalkFailures uint64  `json:"walk_failures"`
	FirstFailure string  `json:"first_failure"`
	StateFound   bool    `json:"state_found"`
	Target       string  `json:"target"`

	// By a listing of the target; 0 if it failed.
	TargetDatabases uint64  `json:"target_databases"`
	TargetBackups   uint64  `json:"target_backups"`
	TargetBytes     uint64  `json:"target_bytes"`
	TargetNewest    *string `json:"target_newest"` // null: none
	Gone            uint64  `json:"gone"`
	NotInTarget     uint64  `json:"not_in_target"`
	TargetError     string  `json:"target_error"`

	LastCycle *lastCycle `json:"last_cycle"` // of replicate; null: none is known
}

func runStatus(ctx context.Context, req *request) error {
	f, end, err := req.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	p, err := f.plan(0)
	if err != nil {
		return err
	}
	// The disk before the target: what is in a plan has had time to get there.
	target, targetErr := listTarget(ctx, req, f)

	output := newStatusOutput(req.cfg, p)
	output.setTarget(target, targetErr)
	if req.asJSON {
		err = printJSON(req.out, output)
	} else {
		err = printStatus(req.out, output)
	}
	if err != nil {
		return err
	}
	faults := statusFaults(req.cfg, p)
	if targetErr != nil {
		faults = append(faults, targetErr.Error())
	} else {
		faults = append(faults, targetFaults(req.cfg, f, p, output, target)...)
	}
	return joinFaults(faults)
}

// targetTotals is what a listing of the target comes to.
type targetTotals struct {
	listSummary
	newest time.Time
}

func listTarget(ctx context.Context, req *request, f fleet) (targetTotals, error) {
	var t targetTotals
	out, m := newRowWriter(io.Discard, false), newMeter(req.errOut, objectsText)
	_, err := runTask(ctx, f, taskOptions{kind: taskList}, out, m, func(r *row) {
		t.add(r)
		if r.time.After(t.newest) {
			t.newest = r.time
		}
	})
	if err != nil {
		return targetTotals{}, err
	}
	return t, nil
}

func statusFaults(cfg *Config, p planResult) []string {
	faults := walkFaults(cfg, p)
	if p.stateHidden {
		faults = append(faults, p.firstFailure)
	} else if !p.stateFound {
		faults = append(faults, "no state file for this target: has replicate run?")
	} else if p.never > 0 {
		faults = append(faults, plural(p.never, "database has", "databases have")+" never been backed up")
	}
	return faults
}

// targetFaults compares the target with the state: what that says is backed up must
// be there.
func targetFaults(cfg *Config, f fleet, p planResult, s statusOutput, t targetTotals) []string {
	var faults []string
	if t.OK+t.Gone == 0 {
		faults = append(faults, noBackups(cfg, f, taskOptions{}).Error())
	}
	if expected := s.Never + s.NotDatabases + s.BadNames; p.stateFound && t.Never > expected {
		missing := t.Never - expected
		faults = append(faults, plural(missing, "database is", "databases are")+" backed up by the state, and not in the target")
	}
	return faults
}

func newStatusOutput(cfg *Config, p planResult) statusOutput {
	output := statusOutput{
		Databases:    p.databases,
		Synced:       p.synced,
		Changed:      p.changed,
		Never:        p.never,
		LastBackup:   nameTime(p.lastBackup),
		BadNames:     p.badNames,
		WalkFailures: p.walkFailures,
		FirstFailure: p.firstFailure,
		StateFound:   p.stateFound,
		Target:       targetName(cfg),
		LastCycle:    readLastCycle(cfg),
	}
	if known := p.synced + p.changed + p.never; p.stateFound && known < p.databases {
		output.NotDatabases = p.databases - known // seen by a cycle, and nothing to back up
	}
	return output
}

func (s *statusOutput) setTarget(t targetTotals, err error) {
	if err != nil {
		s.TargetError = err.Error()
		return
	}
	s.TargetDatabases = t.OK + t.Gone
	s.TargetBackups = t.Backups
	s.TargetBytes = t.Bytes
	s.TargetNewest = nameTime(t.newest)
	s.Gone = t.Gone
	s.NotInTarget = t.Never
}

func printStatus(out io.Writer, s statusOutput) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "target\t%s\n", s.Target)
	fmt.Fprintf(w, "databases\t%d\n", s.Databases)
	fmt.Fprintf(w, "synced\t%d\n", s.Synced)
	fmt.Fprintf(w, "changed\t%d\n", s.Changed)
	fmt.Fprintf(w, "never\t%d\n", s.Never)
	fmt.Fprintf(w, "not databases\t%d\n", s.NotDatabases)
	fmt.Fprintf(w, "names without a key\t%d\n", s.BadNames)
	fmt.Fprintf(w, "walk failures\t%d\n", s.WalkFailures)
	fmt.Fprintf(w, "last backup\t%s\n", orDash(s.LastBackup))
	if c := s.LastCycle; c != nil {
		fmt.Fprintf(w, "last cycle\t%s, %.3f s (walk %.3f, track %.3f, read %.3f, encode %.3f, upload wait %.3f, commit %.3f)\n",
			c.LastScan, c.CycleSeconds, c.StageSeconds.Walk, c.StageSeconds.Track, c.StageSeconds.Read,
			c.StageSeconds.Encode, c.StageSeconds.UploadWait, c.StageSeconds.Commit)
	}
	if s.TargetError != "" {
		fmt.Fprintf(w, "in target\tunknown: %s\n", s.TargetError)
		return w.Flush()
	}
	fmt.Fprintf(w, "in target\t%s (%s, %s)\n", plural(s.TargetDatabases, "database", "databases"),
		plural(s.TargetBackups, "backup", "backups"), humanize.Bytes(s.TargetBytes))
	fmt.Fprintf(w, "newest in target\t%s\n", orDash(s.TargetNewest))
	fmt.Fprintf(w, "gone locally\t%d\n", s.Gone)
	fmt.Fprintf(w, "not in target\t%d\n", s.NotInTarget)
	return w.Flush()
}
