package multidb

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
)

// defaultVerifySample is how many databases `verify` checks unless it is told.
const defaultVerifySample = 100

const verifyHelp = `downloads the newest backup of databases chosen at
random, and checks them as restore does. Nothing is written where the databases
are. What the state of replicate says is backed up must be in the target.

It exits with 1 if any check fails, if the target has no backup, or if no file
on disk matches the discovery pattern. /stats shows the last result.`

const verifyFlagHelp = `	-sample NUM
	    How many databases.
	    Defaults to 100.

	-all
	    All databases.

` + matchFlagHelp + `	-integrity-check MODE
	    Runs SQLite's check as well: none, quick, or full.
	    Defaults to full.

`

// fleetVerify is `verify` with its flags.
type fleetVerify struct {
	opt       taskOptions
	sample    int64
	all       bool
	integrity string
	flags     *flag.FlagSet
}

func setupVerify(fs *flag.FlagSet) commandFunc {
	c := &fleetVerify{opt: taskOptions{kind: taskVerify}, flags: fs}
	fs.Int64Var(&c.sample, "sample", defaultVerifySample, "how many databases")
	fs.BoolVar(&c.all, "all", false, "all databases")
	fs.StringVar(&c.opt.match, "match", "", "shell pattern of original paths")
	fs.StringVar(&c.integrity, "integrity-check", "full", "integrity check: none, quick, or full")
	return c.run
}

// verifyRow is the JSON form of one database of `verify`.
type verifyRow struct {
	Path         string  `json:"path"`
	Status       string  `json:"status"`
	Key          string  `json:"key"`
	SnapshotTime *string `json:"snapshot_time"` // null: cannot be read
	Size         uint64  `json:"size"`
	DatabaseSize uint64  `json:"database_size"`
	Error        string  `json:"error"`
}

type verifySummary struct {
	Databases      uint64  `json:"databases"`
	Verified       uint64  `json:"verified"`
	Failed         uint64  `json:"failed"`
	ObjectBytes    uint64  `json:"object_bytes"`
	DatabaseBytes  uint64  `json:"database_bytes"`
	Seconds        float64 `json:"seconds"`
	Get            uint64  `json:"get"`
	List           uint64  `json:"list"`
	CostUSD        float64 `json:"cost_usd"`
	LocalDatabases uint64  `json:"local_databases"`
}

func (c *fleetVerify) complete() (err error) {
	if c.opt.integrity, err = parseIntegrityCheck(c.integrity); err != nil {
		return err
	}
	sampleGiven := false
	c.flags.Visit(func(f *flag.Flag) { sampleGiven = sampleGiven || f.Name == "sample" })
	switch {
	case c.all && sampleGiven:
		return errors.New("cannot use -all with -sample")
	case c.all:
		c.opt.sampleCount = 0
	case c.sample < 1:
		return fmt.Errorf("invalid -sample value: %d; use 1 or more, or -all", c.sample)
	default:
		c.opt.sampleCount = uint64(c.sample)
	}
	return nil
}

func (c *fleetVerify) run(ctx context.Context, req *request) error {
	if err := c.complete(); err != nil {
		return err
	}
	start := time.Now()
	var s verifySummary
	err := c.verify(ctx, req, &s)
	if ctx.Err() == nil && !req.otherHost {
		recordVerify(req.cfg, lastVerify{
			Time:      time.Now().UTC().Format(time.RFC3339),
			Databases: s.Databases,
			Failed:    s.Failed,
			Seconds:   elapsedSeconds(start),
			Error:     errorText(err),
		})
	}
	return err
}

func (c *fleetVerify) verify(ctx context.Context, req *request, s *verifySummary) error {
	f, end, err := req.begin(ctx)
	if err != nil {
		return err
	}
	defer end()

	start := time.Now()
	out, m := newRowWriter(req.out, req.asJSON), newMeter(req.errOut, databasesText("verified"))
	p, err := runTask(ctx, f, c.opt, out, m, func(r *row) {
		s.add(r)
		printVerifyRow(out, r)
	})
	if err != nil {
		return stoppedAfter(err, "verified", p)
	}
	s.Failed = max(s.Failed, p.failed) // one without a row, for lack of memory, has failed all the same
	s.Seconds, s.Get, s.List, s.CostUSD = elapsedSeconds(start), p.calls.get, p.calls.list, requestCost(req.cfg, p.calls)
	s.LocalDatabases = p.local
	if s.Databases > 0 {
		out.line("verified %d of %d databases (%d failed; %d on disk), %s from %s of objects in %.1f s%s",
			s.Verified, s.Databases, s.Failed, s.LocalDatabases,
			humanize.Bytes(s.DatabaseBytes), humanize.Bytes(s.ObjectBytes), s.Seconds, costText(req.cfg, p.calls))
	}
	if err := out.summary(s); err != nil {
		return err
	}
	return c.fault(req.cfg, f, p, s)
}

func (c *fleetVerify) fault(cfg *Config, f fleet, p progress, s *verifySummary) error {
	if s.Databases == 0 {
		return noBackups(cfg, f, c.opt)
	}
	var faults []string
	if s.Failed > 0 {
		faults = append(faults, fmt.Sprintf("%d of %d databases failed", s.Failed, s.Databases))
	}
	if p.local == 0 {
		faults = append(faults, fmt.Sprintf("no database matches discovery_pattern %q", cfg.DiscoveryPattern))
	}
	if p.walkFailures > 0 {
		faults = append(faults, walkFailuresText(p.walkFailures))
	}
	return joinFaults(faults)
}

func (s *verifySummary) add(r *row) {
	s.Databases++
	if r.status != rowOK {
		s.Failed++
		return
	}
	s.Verified++
	s.ObjectBytes += r.objectSize
	s.DatabaseBytes += r.databaseSize
}

func printVerifyRow(out *rowWriter, r *row) {
	status := "ok"
	if r.status != rowOK {
		status = "failed"
		out.line("failed %s: %s", r.path, r.message)
	}
	out.object(verifyRow{r.path, status, r.key, snapshotTime(r.snapshotTime), r.objectSize, r.databaseSize, r.message})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
