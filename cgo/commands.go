package multidb

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
)

// commandFunc carries out one verb. It prints what it found even if it then fails.
type commandFunc func(ctx context.Context, req *request) error

type command struct {
	name, summary, help string
	flagHelp            string // of its own flags, as its usage shows them
	takesPath           bool
	readsTarget         bool // has -host

	// setup registers the command's own flags.
	setup func(fs *flag.FlagSet) commandFunc
}

// commands are the verbs of `litestream multi-db`, as its usage lists them.
var commands = []command{
	{
		name: "plan", summary: "show what would be backed up, under which keys, and what it would cost", help: planHelp,
		setup: func(*flag.FlagSet) commandFunc { return runPlan },
	},
	{
		name: "status", summary: "show how many databases are backed up, changed, or not backed up yet", help: statusHelp,
		readsTarget: true,
		setup:       func(*flag.FlagSet) commandFunc { return runStatus },
	},
	{
		name: "list", summary: "list the databases in the target and on disk", help: listHelp, flagHelp: matchFlagHelp,
		readsTarget: true,
		setup:       setupList,
	},
	{
		name: "backups", summary: "list the backups of one database", help: backupsHelp,
		takesPath: true, readsTarget: true,
		setup: func(*flag.FlagSet) commandFunc { return runBackups },
	},
	{
		name: "restore", summary: "restore all databases, or those that match", help: restoreFleetHelp, flagHelp: restoreFleetFlagHelp,
		readsTarget: true,
		setup:       setupRestoreFleet,
	},
	{
		name: "verify", summary: "download backups and check them", help: verifyHelp, flagHelp: verifyFlagHelp,
		readsTarget: true,
		setup:       setupVerify,
	},
	{
		name: "purge", summary: "delete all backups of some databases", help: purgeHelp, flagHelp: purgeFlagHelp,
		takesPath: true, readsTarget: true,
		setup: setupPurge,
	},
}

// env is what a command line runs in; tests have another.
type env struct {
	load              func(configPath string, expandEnv bool) (*Config, error)
	defaultConfigPath func() string
	open              func(cfg *Config) (fleet, error)
	out, errOut       io.Writer
}

// request is a command line, understood.
type request struct {
	*env
	cfg       *Config
	asJSON    bool
	path      string // absolute; "": none was given
	otherHost bool   // cfg is that of -host
}

var errNoPath = errors.New("database path required")

// RunCommand runs `litestream multi-db ARGS`. LOAD reads the configuration file;
// a nil Config says that it has no multi_db section.
func RunCommand(ctx context.Context, args []string, load func(configPath string, expandEnv bool) (*Config, error), defaultConfigPath func() string) error {
	// The first signal ends the command in good order; a second one ends the process.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	signal.Ignore(syscall.SIGPIPE) // writing fails instead, and what is under way is cleaned up

	e := &env{load: load, defaultConfigPath: defaultConfigPath, open: openFleet, out: os.Stdout, errOut: os.Stderr}
	return e.run(ctx, args)
}

func (e *env) run(ctx context.Context, args []string) error {
	var name string
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	switch {
	case name == "help":
		printUsage(e.out)
		return nil
	case name == "" || strings.HasPrefix(name, "-"):
		printUsage(e.out)
		return flag.ErrHelp
	}
	for _, c := range commands {
		if c.name == name {
			return c.parseAndRun(ctx, args, e)
		}
	}
	printUsage(e.out)
	return fmt.Errorf("litestream multi-db %s: unknown command", name)
}

func (c *command) parseAndRun(ctx context.Context, args []string, e *env) error {
	fs := flag.NewFlagSet("litestream-multi-db-"+c.name, flag.ContinueOnError)
	fs.SetOutput(e.errOut)
	fs.Usage = func() { c.printUsage(e.out, e.defaultConfigPath()) }
	configPath := fs.String("config", "", "config path")
	noExpandEnv := fs.Bool("no-expand-env", false, "do not expand env vars in config")
	asJSON := fs.Bool("json", false, "output raw JSON")
	var host string
	if c.readsTarget {
		fs.StringVar(&host, "host", "", "value of {{hostname}} in the path of multi_db")
	}
	run := c.setup(fs)
	path, err := c.parse(fs, args)
	if err != nil {
		return err
	}

	if *configPath == "" {
		*configPath = e.defaultConfigPath()
	}
	cfg, err := e.load(*configPath, !*noExpandEnv)
	if err != nil {
		return err
	} else if cfg == nil {
		return fmt.Errorf("no multi_db section in config, or it has enabled: false: %s", *configPath)
	}
	if cfg, err = cfg.ofHost(host); err != nil {
		return err
	}

	out := &pipe{Writer: e.out}
	piped := *e
	piped.out = out
	err = run(ctx, &request{env: &piped, cfg: cfg, asJSON: *asJSON, path: path, otherHost: host != ""})
	if out.closed {
		return flag.ErrHelp // with which main exits with 1 and says nothing
	}
	return err
}

// parse reads flags before and after PATH, which it returns, absolute.
func (c *command) parse(fs *flag.FlagSet, args []string) (path string, err error) {
	for {
		if err := fs.Parse(args); err != nil {
			return "", err
		}
		switch {
		case fs.NArg() == 0:
			return path, nil
		case !c.takesPath || path != "":
			return "", errors.New("too many arguments")
		case fs.Arg(0) == "":
			return "", errors.New("the path of the database is empty")
		}
		if path, err = filepath.Abs(fs.Arg(0)); err != nil {
			return "", err
		}
		args = fs.Args()[1:]
	}
}

// pipe is an output that notices when its reader has gone away.
type pipe struct {
	io.Writer
	closed bool
}

func (p *pipe) Write(b []byte) (int, error) {
	n, err := p.Writer.Write(b)
	p.closed = p.closed || errors.Is(err, syscall.EPIPE)
	return n, err
}

// ofHost returns the configuration that the host NAME has; "" is this one.
func (c *Config) ofHost(name string) (*Config, error) {
	if name == "" {
		return c, nil
	}
	if c.Hostname == "" {
		return nil, fmt.Errorf("-host %s: the path of multi_db has no {{hostname}}", name)
	}
	other := *c
	other.Hostname = name
	return &other, nil
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

const configFlagHelp = `	-config PATH
	    Specifies the configuration file.
	    Defaults to %s

`

const hostFlagHelp = `	-host NAME
	    What another host has backed up, where the path of the multi_db
	    section has {{hostname}}.
	    Defaults to this host's name.

`

const commonFlagHelp = `	-json
	    Output raw JSON instead of human-readable text.

	-no-expand-env
	    Disables environment variable expansion in configuration file.

`

const matchFlagHelp = `	-match GLOB
	    Only databases whose absolute path, when they were backed up, matches
	    this shell pattern. Its * crosses slashes.

`

func (c *command) printUsage(out io.Writer, defaultConfigPath string) {
	path := ""
	if c.takesPath {
		path = " PATH"
	}
	fmt.Fprintf(out, `
The multi-db %s command %s

Usage:

	litestream multi-db %s [arguments]%s

Arguments:

`[1:], c.name, c.help, c.name, path)
	fmt.Fprintf(out, configFlagHelp, defaultConfigPath)
	fmt.Fprint(out, c.flagHelp)
	if c.readsTarget {
		fmt.Fprint(out, hostFlagHelp)
	}
	fmt.Fprint(out, commonFlagHelp)
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
