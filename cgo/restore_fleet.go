package multidb

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/dustin/go-humanize"
)

const restoreFleetHelp = `restores the newest backup of each database to the
path that it had. It needs the configuration and the target, and nothing else:
a machine may be empty. "litestream restore PATH" restores a single one.

An existing database is a failure of that one, and stays as it is. Every file is
checked against its SHA-256 before it gets its name.

It exits with 1 if nothing matches, or if any database could not be restored:
each is named on standard error.`

const restoreFleetFlagHelp = matchFlagHelp + `	-timestamp TIMESTAMP
	    The newest backups whose snapshot time is not after TIMESTAMP, in ISO
	    8601 format (e.g. 2000-01-01T00:00:00Z).
	    Defaults to the newest.

	-output-dir DIR
	    Restores to DIR, under the path below the directory with which the
	    discovery pattern begins.
	    Defaults to where the databases were.

	-parallelism NUM
	    Downloads at the same time, 1 to 1000.
	    Defaults to max_concurrent_uploads.

	-dry-run
	    Prints what would be restored, and what it would cost. Nothing is
	    downloaded or written.

	-force
	    Replaces existing databases. Stop their applications first.

	-if-db-not-exists
	    Skips databases that exist.

	-fallback
	    Where the backup chosen is damaged, takes the next older good one.

	-integrity-check MODE
	    Runs SQLite's check before a file gets its name: none, quick, or full.
	    Defaults to none.

`

// fleetRestore is `restore` with its flags.
type fleetRestore struct {
	opt                  taskOptions
	timestamp, integrity string
	outputDir            string
	parallelism          parallelism
}

func setupRestoreFleet(fs *flag.FlagSet) commandFunc {
	c := &fleetRestore{opt: taskOptions{kind: taskRestore}}
	fs.StringVar(&c.opt.match, "match", "", "shell pattern of original paths")
	fs.StringVar(&c.timestamp, "timestamp", "", "timestamp")
	fs.StringVar(&c.outputDir, "output-dir", "", "directory to restore to")
	fs.Var(&c.parallelism, "parallelism", "downloads at the same time")
	fs.BoolVar(&c.opt.dryRun, "dry-run", false, "print what would be restored")
	fs.BoolVar(&c.opt.force, "force", false, "replace existing databases")
	fs.BoolVar(&c.opt.ifNotExists, "if-db-not-exists", false, "skip existing databases")
	fs.BoolVar(&c.opt.fallback, "fallback", false, "take the next older good backup instead of a damaged one")
	fs.StringVar(&c.integrity, "integrity-check", "none", "integrity check: none, quick, or full")
	return c.run
}

// parallelism is the value of a flag, 0 if it was not given.
type parallelism int

func (n *parallelism) String() string { return strconv.Itoa(int(*n)) }

func (n *parallelism) Set(text string) error {
	value, err := strconv.Atoi(text)
	if err != nil || value < 1 || value > MaxMaxConcurrentUploads {
		return fmt.Errorf("must be a number from 1 to %d", MaxMaxConcurrentUploads)
	}
	*n = parallelism(value)
	return nil
}

// withParallelism returns cfg with n transfers at a time; 0 leaves it as it is.
func (c *Config) withParallelism(n parallelism) *Config {
	if n == 0 {
		return c
	}
	other := *c
	if c.S3 != nil {
		s3 := *c.S3
		s3.MaxConcurrentUploads = int(n)
		other.S3 = &s3
	} else {
		file := *c.File
		file.MaxConcurrentUploads = int(n)
		other.File = &file
	}
	return &other
}

// restoreRow is the JSON form of one database of `restore`.
type restoreRow struct {
	Path         string  `json:"path"`
	Output       string  `json:"output"`
	Status       string  `json:"status"`
	Key          string  `json:"key"`
	Time         *string `json:"time"`          // in the name of the object
	SnapshotTime *string `json:"snapshot_time"` // null: not read
	Size         uint64  `json:"size"`
	DatabaseSize uint64  `json:"database_size"`
	Mode         string  `json:"mode"`
	Error        string  `json:"error"`
}

type restoreSummary struct {
	Databases     uint64  `json:"databases"`
	Restored      uint64  `json:"restored"`
	Skipped       uint64  `json:"skipped"`
	Failed        uint64  `json:"failed"`
	ObjectBytes   uint64  `json:"object_bytes"`
	DatabaseBytes uint64  `json:"database_bytes"`
	Seconds       float64 `json:"seconds"`
	Get           uint64  `json:"get"`
	List          uint64  `json:"list"`
	CostUSD       float64 `json:"cost_usd"`
}

func (c *fleetRestore) complete() (err error) {
	if c.opt.integrity, err = parseIntegrityCheck(c.integrity); err != nil {
		return err
	}
	if c.timestamp != "" {
		if c.opt.timestamp, err = time.Parse(time.RFC3339, c.timestamp); err != nil {
			return errors.New("invalid -timestamp, must specify in ISO 8601 format (e.g. 2000-01-01T00:00:00Z)")
		} else if c.opt.timestamp.IsZero() {
			return fmt.Errorf("invalid -timestamp %s: no backup can be as old", c.timestamp)
		}
	}
	if c.outputDir != "" {
		c.opt.outputDir, err = filepath.Abs(c.outputDir)
	}
	return err
}

func (c *fleetRestore) run(ctx context.Context, req *request) error {
	if err := c.complete(); err != nil {
		return err
	}
	req.cfg = req.cfg.withParallelism(c.parallelism)
	f, end, err := req.begin(ctx)
	if err != nil {
		return err
	}
	defer end()

	start := time.Now()
	out, m := newRowWriter(req.out, req.asJSON), newMeter(req.errOut, databasesText("restored"))
	var s restoreSummary
	var wouldRestore, wouldGet uint64
	p, err := runTask(ctx, f, c.opt, out, m, func(r *row) {
		s.add(r)
		if r.status == rowOK && c.opt.dryRun {
			wouldRestore++
			wouldGet += r.objects
		}
		c.printRow(out, m, r)
	})
	if err != nil {
		return stoppedAfter(err, "restored", p)
	}
	s.Failed = max(s.Failed, p.failed) // one without a row, for lack of memory, has failed all the same
	calls := p.calls
	if c.opt.dryRun {
		s.Restored = 0
		calls.get += wouldGet
	}
	s.Seconds, s.Get, s.List, s.CostUSD = elapsedSeconds(start), calls.get, calls.list, requestCost(req.cfg, calls)
	c.printSummary(out, req.cfg, s, calls, wouldRestore)
	if err := out.summary(s); err != nil {
		return err
	}
	switch {
	case s.Databases == 0:
		return noBackups(req.cfg, f, c.opt)
	case s.Failed > 0:
		return fmt.Errorf("%d of %d databases could not be restored", s.Failed, s.Databases)
	}
	return nil
}

// stoppedAfter says how far a task came that could not be carried through.
func stoppedAfter(err error, done string, p progress) error {
	if p.done == 0 {
		return err
	}
	return fmt.Errorf("%w; %d of %d databases %s before", err, p.done-min(p.failed, p.done), p.total, done)
}

func (s *restoreSummary) add(r *row) {
	s.Databases++
	switch r.status {
	case rowOK:
		s.Restored++
		s.ObjectBytes += r.objectSize
		s.DatabaseBytes += r.databaseSize
	case rowSkipped:
		s.Skipped++
	default:
		s.Failed++
	}
}

func (c *fleetRestore) printRow(out *rowWriter, m *meter, r *row) {
	out.object(restoreRow{r.path, r.output, c.rowStatus(r.status), r.key, nameTime(r.time), snapshotTime(r.snapshotTime),
		r.objectSize, r.databaseSize, fileMode(r), r.message})
	if out.json != nil {
		return
	}
	switch {
	case r.status == rowFailed:
		m.println("failed %s: %s", r.path, r.message)
	case r.status == rowOK && r.message != "":
		m.println("fell back %s: %s", r.path, r.message)
	}
	if c.opt.dryRun && r.status == rowOK {
		out.line("%s -> %s, %s", r.path, r.output, humanize.Bytes(r.objectSize))
	}
}

func (c *fleetRestore) rowStatus(s rowStatus) string {
	switch {
	case s == rowOK && c.opt.dryRun:
		return "would-restore"
	case s == rowOK:
		return "restored"
	case s == rowSkipped:
		return "skipped"
	}
	return "failed"
}

func (c *fleetRestore) printSummary(out *rowWriter, cfg *Config, s restoreSummary, calls apiCalls, wouldRestore uint64) {
	if s.Databases == 0 {
		return
	}
	others := fmt.Sprintf("%d skipped, %d failed", s.Skipped, s.Failed)
	if c.opt.dryRun {
		out.line("would restore %d of %d databases (%s), %s of objects%s", wouldRestore, s.Databases, others,
			humanize.Bytes(s.ObjectBytes), costText(cfg, calls))
		return
	}
	out.line("restored %d of %d databases (%s), %s from %s of objects in %.1f s%s", s.Restored, s.Databases, others,
		humanize.Bytes(s.DatabaseBytes), humanize.Bytes(s.ObjectBytes), s.Seconds, costText(cfg, calls))
}
