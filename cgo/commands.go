package multidb

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// planSamples is how many paths `plan` shows with their keys.
const planSamples = 10

// commandFunc carries out one verb. It prints what it found even if it then fails.
type commandFunc func(ctx context.Context, cfg *Config, asJSON bool, out io.Writer) error

type command struct {
	name, summary, help string
	run                 commandFunc
}

// commands are the verbs of `litestream multi-db`, as its usage lists them.
var commands = []command{
	{"plan", "show what would be backed up, under which keys, and what it would cost", planHelp, runPlan},
	{"status", "show how many databases are backed up, changed, or not backed up yet", statusHelp, runStatus},
}

// RunCommand runs `litestream multi-db ARGS`. LOAD reads the configuration file;
// a nil Config says that it has no multi_db section.
func RunCommand(ctx context.Context, args []string, load func(configPath string, expandEnv bool) (*Config, error), defaultConfigPath func() string) error {
	return runCommand(ctx, args, load, defaultConfigPath, os.Stdout)
}

func runCommand(ctx context.Context, args []string, load func(configPath string, expandEnv bool) (*Config, error), defaultConfigPath func() string, out io.Writer) error {
	var name string
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	switch {
	case name == "help":
		printUsage(out)
		return nil
	case name == "" || strings.HasPrefix(name, "-"):
		printUsage(out)
		return flag.ErrHelp
	}
	for _, c := range commands {
		if c.name == name {
			return c.parseAndRun(ctx, args, load, defaultConfigPath, out)
		}
	}
	printUsage(out)
	return fmt.Errorf("litestream multi-db %s: unknown command", name)
}

func (c *command) parseAndRun(ctx context.Context, args []string, load func(configPath string, expandEnv bool) (*Config, error), defaultConfigPath func() string, out io.Writer) error {
	fs := flag.NewFlagSet("litestream-multi-db-"+c.name, flag.ContinueOnError)
	configPath := fs.String("config", "", "config path")
	noExpandEnv := fs.Bool("no-expand-env", false, "do not expand env vars in config")
	asJSON := fs.Bool("json", false, "output raw JSON")
	fs.Usage = func() { c.printUsage(out, defaultConfigPath()) }
	if err := fs.Parse(args); err != nil {
		return err
	} else if fs.NArg() > 0 {
		return fmt.Errorf("too many arguments")
	}

	if *configPath == "" {
		*configPath = defaultConfigPath()
	}
	cfg, err := load(*configPath, !*noExpandEnv)
	if err != nil {
		return err
	} else if cfg == nil {
		return fmt.Errorf("no multi_db section in config, or it has enabled: false: %s", *configPath)
	}
	return c.run(ctx, cfg, *asJSON, out)
}

func printUsage(out io.Writer) {
	fmt.Fprint(out, `
The multi-db command works on the databases of the multi_db section.

Usage:

	litestream multi-db <command> [arguments]

The commands are:

`[1:])
	w := tabwriter.NewWriter(out, 0, 8, 4, ' ', 0)
	for _, c := range commands {
		fmt.Fprintf(w, "\t%s\t%s\n", c.name, c.summary)
	}
	w.Flush()
	fmt.Fprintln(out)
}

func (c *command) printUsage(out io.Writer, defaultConfigPath string) {
	fmt.Fprintf(out, `
The multi-db %s command %s

Usage:

	litestream multi-db %s [arguments]

Arguments:

	-config PATH
	    Specifies the configuration file.
	    Defaults to %s

	-json
	    Output raw JSON instead of human-readable text.

	-no-expand-env
	    Disables environment variable expansion in configuration file.

`[1:], c.name, c.help, c.name, defaultConfigPath)
}

// walk opens the fleet without its lock and looks at every file that matches.
func walk(ctx context.Context, cfg *Config, samples int) (planResult, error) {
	core, err := openCore(cfg, true)
	if err != nil {
		return planResult{}, fmt.Errorf("open multi_db: %w", err)
	}
	defer core.close()
	defer context.AfterFunc(ctx, core.cancel)()
	return core.plan(samples)
}

// walkFaults are the reasons why plan and status fail, nil if there are none.
func walkFaults(cfg *Config, p planResult) []string {
	var faults []string
	if p.databases == 0 {
		faults = append(faults, fmt.Sprintf("no database matches discovery_pattern %q", cfg.DiscoveryPattern))
	}
	if p.badNames > 0 {
		faults = append(faults, plural(p.badNames, "name gives no legal key", "names give no legal key"))
	}
	if p.walkFailures > 0 {
		faults = append(faults, walkFailuresText(p.walkFailures)+": "+p.firstFailure)
	}
	return faults
}

func walkFailuresText(n uint64) string {
	return plural(n, "directory or file", "directories or files") + " could not be looked at"
}

func plural(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func joinFaults(faults []string) error {
	if len(faults) == 0 {
		return nil
	}
	return errors.New(strings.Join(faults, "; "))
}

const planHelp = `walks the files that the discovery pattern matches and
shows what would be backed up: how many databases, the key that each of a few
of them gets, names that give no legal key, and what the requests would cost.
Nothing is read from databases, written, or sent to the target.

It exits with 1 if nothing matches, or if a file could not be looked at or has a
name that gives no key.`

// planOutput is the JSON form of `plan`. Paths are escaped as in keys.
type planOutput struct {
	DiscoveryPattern string        `json:"discovery_pattern"`
	Prefix           string        `json:"prefix"`
	Target           string        `json:"target"`
	Databases        uint64        `json:"databases"`
	DatabaseBytes    uint64        `json:"database_bytes"`
	Directories      uint64        `json:"directories"`
	WithWAL          uint64        `json:"with_wal"`
	BadNames         uint64        `json:"bad_names"`
	WalkFailures     uint64        `json:"walk_failures"`
	FirstFailure     string        `json:"first_failure"`
	Samples          []planSample  `json:"samples"`
	Cost             *costEstimate `json:"cost"` // null: the target costs nothing
}

type planSample struct {
	Path         string `json:"path"`
	Key          string `json:"key"` // "" if it has none
	DatabaseSize uint64 `json:"database_size"`
	Error        string `json:"error"`
}

// costEstimate is in US dollars at the list prices of S3 in us-east-1.
type costEstimate struct {
	FirstSyncPuts         uint64  `json:"first_sync_puts"`
	FirstSyncUSD          float64 `json:"first_sync_usd"`
	USDPerThousandUploads float64 `json:"usd_per_thousand_uploads"`
}

func runPlan(ctx context.Context, cfg *Config, asJSON bool, out io.Writer) error {
	p, err := walk(ctx, cfg, planSamples)
	if err != nil {
		return err
	}
	output := newPlanOutput(cfg, p)
	if asJSON {
		err = printJSON(out, output)
	} else {
		err = printPlan(out, output)
	}
	if err != nil {
		return err
	}
	return joinFaults(walkFaults(cfg, p))
}

func newPlanOutput(cfg *Config, p planResult) planOutput {
	output := planOutput{
		DiscoveryPattern: cfg.DiscoveryPattern,
		Prefix:           p.prefix,
		Target:           targetName(cfg),
		Databases:        p.databases,
		DatabaseBytes:    p.databaseBytes,
		Directories:      p.directories,
		WithWAL:          p.withWAL,
		BadNames:         p.badNames,
		WalkFailures:     p.walkFailures,
		FirstFailure:     p.firstFailure,
		Samples:          make([]planSample, 0, len(p.samples)),
	}
	for _, s := range p.samples {
		output.Samples = append(output.Samples, planSample{s.path, s.key, s.databaseSize, s.message})
	}
	if cfg.S3 != nil {
		puts := p.databases - min(p.badNames, p.databases)
		output.Cost = &costEstimate{
			FirstSyncPuts:         puts,
			FirstSyncUSD:          apiCalls{put: puts}.usd(),
			USDPerThousandUploads: apiCalls{put: 1000}.usd(),
		}
	}
	return output
}

func printPlan(out io.Writer, p planOutput) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "discovery pattern\t%s\n", p.DiscoveryPattern)
	fmt.Fprintf(w, "prefix\t%s\n", p.Prefix)
	fmt.Fprintf(w, "target\t%s\n", p.Target)
	fmt.Fprintf(w, "databases\t%d (%s in %s, %d with a WAL)\n",
		p.Databases, humanize.Bytes(p.DatabaseBytes), plural(p.Directories, "directory", "directories"), p.WithWAL)
	fmt.Fprintf(w, "names without a key\t%d\n", p.BadNames)
	fmt.Fprintf(w, "walk failures\t%d\n", p.WalkFailures)
	if p.Cost != nil {
		fmt.Fprintf(w, "first sync\t%d PUT = $%.2f\n", p.Cost.FirstSyncPuts, p.Cost.FirstSyncUSD)
		fmt.Fprintf(w, "afterwards\teach 1,000 databases changed in a cycle cost $%.3f\n", p.Cost.USDPerThousandUploads)
	}
	printSamples(w, p.Samples)
	return w.Flush()
}

func printSamples(w io.Writer, samples []planSample) {
	if len(samples) > 0 {
		fmt.Fprintln(w, "\npath\tkey")
	}
	for _, s := range samples {
		key := s.Key
		if key == "" {
			key = "(none: " + s.Error + ")"
		}
		fmt.Fprintf(w, "%s\t%s\n", s.Path, key)
	}
}

const statusHelp = `compares the files on disk with the state that
replicate keeps. It asks neither the target nor a running replicate, whose
/stats knows more about failures.

It exits with 1 if nothing matches, if a database has never been backed up, or
if a file could not be looked at. Changes since the last backup are normal.

Output:
  databases      Files that match the discovery pattern
  synced         Unchanged since their last backup
  changed        Backed up before, changed or failing now
  never          Not backed up yet, new or failing from the start
  not databases  Empty files, and files that are no SQLite database
  last backup    Time in the name of the newest backup`

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
}

func runStatus(ctx context.Context, cfg *Config, asJSON bool, out io.Writer) error {
	p, err := walk(ctx, cfg, 0)
	if err != nil {
		return err
	}
	output := newStatusOutput(cfg, p)
	if asJSON {
		err = printJSON(out, output)
	} else {
		err = printStatus(out, output)
	}
	if err != nil {
		return err
	}
	return joinFaults(statusFaults(cfg, p))
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

func newStatusOutput(cfg *Config, p planResult) statusOutput {
	output := statusOutput{
		Databases:    p.databases,
		Synced:       p.synced,
		Changed:      p.changed,
		Never:        p.never,
		BadNames:     p.badNames,
		WalkFailures: p.walkFailures,
		FirstFailure: p.firstFailure,
		StateFound:   p.stateFound,
		Target:       targetName(cfg),
	}
	if known := p.synced + p.changed + p.never; p.stateFound && known < p.databases {
		output.NotDatabases = p.databases - known // seen by a cycle, and nothing to back up
	}
	if !p.lastBackup.IsZero() {
		last := p.lastBackup.UTC().Format(time.RFC3339)
		output.LastBackup = &last
	}
	return output
}

func printStatus(out io.Writer, s statusOutput) error {
	last := "-"
	if s.LastBackup != nil {
		last = *s.LastBackup
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "target\t%s\n", s.Target)
	fmt.Fprintf(w, "databases\t%d\n", s.Databases)
	fmt.Fprintf(w, "synced\t%d\n", s.Synced)
	fmt.Fprintf(w, "changed\t%d\n", s.Changed)
	fmt.Fprintf(w, "never\t%d\n", s.Never)
	fmt.Fprintf(w, "not databases\t%d\n", s.NotDatabases)
	fmt.Fprintf(w, "names without a key\t%d\n", s.BadNames)
	fmt.Fprintf(w, "walk failures\t%d\n", s.WalkFailures)
	fmt.Fprintf(w, "last backup\t%s\n", last)
	return w.Flush()
}
