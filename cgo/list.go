package multidb

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
)

const listHelp = `lists the databases that have backups in the target,
and those on disk, in the order of their keys. It needs no state of replicate.

It exits with 1 if there are none, or if something could not be looked at. To be
gone, or never backed up, is no error here: status judges.

Output, with tabs between the columns:
  STATUS    ok: in the target and on disk; gone: not on disk; never: not in the
            target
  DATABASE  Its absolute path, escaped as in keys
  NEWEST    Time in the name of the newest backup
  AGE       How long ago that was
  SIZE      Of the newest backup
  BACKUPS   How many there are`

// listRow is the JSON form of one database of `list`.
type listRow struct {
	Status     string  `json:"status"`
	Path       string  `json:"path"`
	Key        string  `json:"key"`    // prefix of its objects
	Newest     *string `json:"newest"` // null: no backup
	AgeSeconds *int64  `json:"age_seconds"`
	Size       uint64  `json:"size"` // of the newest object
	Backups    uint64  `json:"backups"`
	Bytes      uint64  `json:"bytes"` // of all objects
	Error      string  `json:"error"`
}

type listSummary struct {
	Databases      uint64 `json:"databases"`
	OK             uint64 `json:"ok"`
	Gone           uint64 `json:"gone"`
	Never          uint64 `json:"never"`
	Backups        uint64 `json:"backups"`
	Bytes          uint64 `json:"bytes"`
	ForeignObjects uint64 `json:"foreign_objects"`
}

func (s *listSummary) add(r *row) {
	s.Databases++
	switch r.status {
	case rowOK:
		s.OK++
	case rowGone:
		s.Gone++
	case rowNever:
		s.Never++
	}
	s.Backups += r.objects
	s.Bytes += r.objectsSize
}

func setupList(fs *flag.FlagSet) commandFunc {
	match := fs.String("match", "", "shell pattern of original paths")
	return func(ctx context.Context, req *request) error { return runList(ctx, req, *match) }
}

func runList(ctx context.Context, req *request, match string) error {
	f, end, err := req.begin(ctx)
	if err != nil {
		return err
	}
	defer end()

	opt := taskOptions{kind: taskList, match: match}
	var s listSummary
	var failed uint64
	out := newRowWriter(req.out, req.asJSON, "STATUS", "DATABASE", "NEWEST", "AGE", "SIZE", "BACKUPS")
	p, err := runTask(ctx, f, opt, out, nil, func(r *row) {
		s.add(r)
		if r.status == rowFailed {
			failed++
		}
		printListRow(out, r, time.Now())
	})
	if err != nil {
		return err
	}
	s.ForeignObjects = p.foreign
	if err := out.summary(s); err != nil {
		return err
	}
	if s.Databases == 0 {
		return noBackups(req.cfg, f, opt)
	}
	if p.ours == 0 {
		if err := hostFault(req.cfg, f); err != nil {
			return err
		}
	}
	var faults []string
	if failed > 0 {
		faults = append(faults, fmt.Sprintf("%d of %d databases could not be looked at", failed, s.Databases))
	}
	if p.walkFailures > 0 {
		faults = append(faults, walkFailuresText(p.walkFailures))
	}
	return joinFaults(faults)
}

func printListRow(out *rowWriter, r *row, now time.Time) {
	newest := nameTime(r.time)
	age, size := "-", "-"
	var ageSeconds *int64
	if newest != nil {
		seconds := max(int64(now.Sub(r.time)/time.Second), 0)
		ageSeconds = &seconds
		age, size = formatAge(time.Duration(seconds)*time.Second), humanize.Bytes(r.objectSize)
	}
	status := listStatus(r.status)
	out.object(listRow{status, r.path, r.key, newest, ageSeconds, r.objectSize, r.objects, r.objectsSize, r.message})
	reason := ""
	if r.message != "" {
		reason = "\t(" + r.message + ")"
	}
	out.line("%s\t%s\t%s\t%s\t%s\t%d%s", status, r.path, orDash(newest), age, size, r.objects, reason)
}

func listStatus(s rowStatus) string {
	switch s {
	case rowOK:
		return "ok"
	case rowGone:
		return "gone"
	case rowNever:
		return "never"
	}
	return "failed"
}

// formatAge has one unit, rounded down.
func formatAge(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

const backupsHelp = `lists the backups of one database, oldest first. PATH
is its absolute path when it was backed up; it need not exist.

It exits with 1 if there are none, or if one of them is damaged.

Output, with tabs between the columns:
  TIME           In the name of the backup: where its window starts
  SNAPSHOT       When the image was the state of the database: what -timestamp
                 of restore looks at
  SIZE           Of the backup
  DATABASE-SIZE  Of the database in it
  KEY            Of the object, and behind it what is wrong with it`

// backupRow is the JSON form of one object of `backups`.
type backupRow struct {
	Status       string  `json:"status"`
	Key          string  `json:"key"`
	Time         *string `json:"time"`
	SnapshotTime *string `json:"snapshot_time"` // null: cannot be read
	Size         uint64  `json:"size"`
	DatabaseSize uint64  `json:"database_size"`
	Mode         string  `json:"mode"`
	Error        string  `json:"error"`
}

type backupsSummary struct {
	Backups uint64 `json:"backups"`
	Bytes   uint64 `json:"bytes"`
	Failed  uint64 `json:"failed"`
}

func runBackups(ctx context.Context, req *request) error {
	if req.path == "" {
		return errNoPath
	}
	f, end, err := req.begin(ctx)
	if err != nil {
		return err
	}
	defer end()

	opt := taskOptions{kind: taskBackups, path: req.path}
	var s backupsSummary
	out := newRowWriter(req.out, req.asJSON, "TIME", "SNAPSHOT", "SIZE", "DATABASE-SIZE", "KEY")
	if _, err := runTask(ctx, f, opt, out, nil, func(r *row) {
		s.Backups++
		s.Bytes += r.objectSize
		if r.status == rowFailed {
			s.Failed++
		}
		printBackupRow(out, r)
	}); err != nil {
		return err
	}
	if err := out.summary(s); err != nil {
		return err
	}
	switch {
	case s.Backups == 0:
		return noBackups(req.cfg, f, opt)
	case s.Failed > 0:
		return fmt.Errorf("%d of %s damaged", s.Failed, plural(s.Backups, "backup is", "backups are"))
	}
	return nil
}

func printBackupRow(out *rowWriter, r *row) {
	status, reason, databaseSize := "ok", "", humanize.Bytes(r.databaseSize)
	if r.status == rowFailed {
		status, reason = "failed", "\tfailed: "+r.message
	}
	if r.snapshotTime.IsZero() {
		databaseSize = "-"
	}
	name, snapshot := nameTime(r.time), snapshotTime(r.snapshotTime)
	out.object(backupRow{status, r.key, name, snapshot, r.objectSize, r.databaseSize, fileMode(r), r.message})
	out.line("%s\t%s\t%s\t%s\t%s%s", orDash(name), orDash(snapshot), humanize.Bytes(r.objectSize), databaseSize, r.key, reason)
}
