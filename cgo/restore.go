package multidb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// RestoreFlags are the flags of `litestream restore` that apply to multi_db.
type RestoreFlags struct {
	Path            string    // of the database when it was backed up
	OutputPath      string    // "": the same
	Timestamp       time.Time // zero: the newest backup
	IfDBNotExists   bool
	IfReplicaExists bool
	DryRun          bool
	Force           bool
	JSON            bool
	IntegrityCheck  string // "none", "quick" or "full"; "" is "none"
	Host            string // {{hostname}} of the backup; "": this host's
}

// RestoreResult is upstream's JSON summary of a restore, with our own fields behind it.
type RestoreResult struct {
	DBPath         string `json:"db_path"`
	Replica        string `json:"replica"`
	TXID           string `json:"txid"` // always "": a backup has none
	DurationMS     int64  `json:"duration_ms"`
	IntegrityCheck string `json:"integrity_check"`
	Key            string `json:"key"`
	SnapshotTime   string `json:"snapshot_time"`
	DatabaseSize   uint64 `json:"database_size"`
}

// RestorePlan is upstream's JSON form of -dry-run, with our own fields behind it.
type RestorePlan struct {
	Source       string            `json:"source"`
	TargetPath   string            `json:"target_path"`
	Replica      string            `json:"replica"`
	MinTXID      string            `json:"min_txid"` // always ""
	MaxTXID      string            `json:"max_txid"` // always ""
	Files        []RestorePlanFile `json:"files"`
	Key          string            `json:"key"`
	SnapshotTime string            `json:"snapshot_time"`
	DatabaseSize uint64            `json:"database_size"`
}

// RestorePlanFile is the one object that a restore fetches.
type RestorePlanFile struct {
	Level     int    `json:"level"`
	Name      string `json:"name"`
	MinTXID   string `json:"min_txid"` // always ""
	MaxTXID   string `json:"max_txid"` // always ""
	Size      uint64 `json:"size"`
	Timestamp string `json:"timestamp"`
}

// snapshotLevel is the level of full snapshots in upstream's numbering.
const snapshotLevel = 9

// RestoreCommand restores one database that multi_db backs up, with the flags, the
// wording and the exit codes of `litestream restore`.
func RestoreCommand(ctx context.Context, cfg *Config, f RestoreFlags) error {
	// The first signal takes the temporary file away; a second one ends the process.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	return restore(ctx, cfg, f, os.Stdout)
}

func restore(ctx context.Context, cfg *Config, f RestoreFlags, out io.Writer) error {
	cfg, err := cfg.ofHost(f.Host)
	if err != nil {
		return err
	}
	opt, err := f.options()
	if err != nil {
		return err
	}
	// Before the core is asked, as this needs no target.
	if _, err := os.Lstat(opt.outputPath); !os.IsNotExist(err) && f.IfDBNotExists {
		logger().Info("database already exists, skipping")
		return nil
	}
	if !f.DryRun {
		if err := checkOutputPath(opt.outputPath, f.Force); err != nil {
			return err
		}
	}

	r, err := openForReading(cfg)
	if err != nil {
		return err
	}
	defer r.close()
	defer context.AfterFunc(ctx, r.cancel)()
	r.signIn(ctx)

	start := time.Now()
	result, err := r.restore(opt)
	if err != nil {
		return f.restoreError(cfg, r, err)
	}
	if result.skipped {
		logger().Info("database already exists, skipping")
		return nil
	}
	if f.DryRun {
		return printRestorePlan(out, f.plan(cfg, opt, result), f.JSON)
	}
	if !f.JSON {
		return nil
	}
	return printJSON(out, RestoreResult{
		DBPath:         opt.outputPath,
		Replica:        replicaType(cfg),
		DurationMS:     time.Since(start).Milliseconds(),
		IntegrityCheck: f.integrityCheck(),
		Key:            result.key,
		SnapshotTime:   result.snapshotTime.Format(time.RFC3339Nano),
		DatabaseSize:   result.databaseSize,
	})
}

func (f *RestoreFlags) integrityCheck() string {
	if f.IntegrityCheck == "" {
		return "none"
	}
	return f.IntegrityCheck
}

func parseIntegrityCheck(value string) (integrityMode, error) {
	switch value {
	case "none":
		return integrityNone, nil
	case "quick":
		return integrityQuick, nil
	case "full":
		return integrityFull, nil
	}
	return 0, fmt.Errorf("invalid -integrity-check value: %s", value)
}

func (f *RestoreFlags) options() (restoreOptions, error) {
	opt := restoreOptions{
		timestamp:   f.Timestamp,
		force:       f.Force,
		dryRun:      f.DryRun,
		ifNotExists: f.IfDBNotExists,
	}
	var err error
	if opt.integrity, err = parseIntegrityCheck(f.integrityCheck()); err != nil {
		return opt, err
	}
	if opt.path, err = filepath.Abs(f.Path); err != nil {
		return opt, err
	}
	opt.outputPath = opt.path
	if f.OutputPath != "" {
		opt.outputPath, err = filepath.Abs(f.OutputPath)
	}
	return opt, err
}

// checkOutputPath refuses what upstream refuses, before anything is downloaded. The
// core looks again, and under locks, when it puts the database in place.
func checkOutputPath(path string, force bool) error {
	info, err := os.Stat(path)
	if os.IsNotExist(err) {
		info = nil
	} else if err != nil {
		return fmt.Errorf("cannot access output path: %w", err)
	}
	if info != nil && info.IsDir() {
		return fmt.Errorf("cannot restore, output path is a directory: %s", path)
	}
	if force {
		return nil
	}
	if info != nil && info.Size() > 0 {
		return errOutputExists(path)
	}
	for _, sidecarPath := range []string{path + "-wal", path + "-journal"} {
		if _, err := os.Lstat(sidecarPath); err == nil {
			return fmt.Errorf("cannot restore, SQLite sidecar path already exists: %s. Use -force to overwrite", sidecarPath)
		} else if !os.IsNotExist(err) && !errors.Is(err, syscall.ENAMETOOLONG) {
			return fmt.Errorf("cannot access SQLite sidecar path: %w", err)
		}
	}
	return nil
}

func errOutputExists(path string) error {
	return fmt.Errorf("cannot restore, output path already exists and is not empty: %s. Use -force to overwrite", path)
}

// restoreError puts the core's answer in upstream's words. Nil is -if-replica-exists.
func (f *RestoreFlags) restoreError(cfg *Config, hosts hostLister, err error) error {
	switch {
	case isNoBackup(err) && f.IfReplicaExists && !f.DryRun:
		logger().Info("no matching backups found")
		return nil
	case isNoBackup(err):
		return fmt.Errorf("no matching backup files available: %w", withHosts(cfg, hosts, err))
	case errors.Is(err, ErrExists):
		return err // says what is in the way, and whether -force helps
	}
	if strings.HasPrefix(err.Error(), "cannot restore") {
		return err
	}
	return fmt.Errorf("cannot restore %s: %w", f.Path, err)
}

// isNoBackup tells a target without a backup from one that says, for one, that
// there is no such bucket: that is no reason to start with an empty database.
func isNoBackup(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == ErrNotFound && e.HTTPStatus == 0
}

func (f *RestoreFlags) plan(cfg *Config, opt restoreOptions, result restoreResult) RestorePlan {
	snapshotTime := result.snapshotTime.Format(time.RFC3339Nano)
	return RestorePlan{
		Source:     f.Path,
		TargetPath: opt.outputPath,
		Replica:    replicaType(cfg),
		Files: []RestorePlanFile{{
			Level:     snapshotLevel,
			Name:      path.Base(result.key),
			Size:      result.objectSize,
			Timestamp: snapshotTime,
		}},
		Key:          result.key,
		SnapshotTime: snapshotTime,
		DatabaseSize: result.databaseSize,
	}
}

func printRestorePlan(out io.Writer, plan RestorePlan, asJSON bool) error {
	if asJSON {
		return printJSON(out, plan)
	}
	_, err := fmt.Fprintf(out, `Restore plan:
  source: %s
  target: %s
  replica: %s
  object: %s
  object size: %d
  database size: %d
  snapshot time: %s
`,
		plan.Source, plan.TargetPath, plan.Replica, plan.Key,
		plan.Files[0].Size, plan.DatabaseSize, plan.SnapshotTime)
	return err
}

func printJSON(out io.Writer, v any) error {
	output, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("failed to format response: %w", err)
	}
	_, err = fmt.Fprintln(out, string(output))
	return err
}
