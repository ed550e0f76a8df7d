package multidb

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

const purgeHelp = `deletes all backups of the databases that are named by
PATH, by -match, or by -gone and -older-than. The databases themselves are not
touched; those that are on disk are backed up again when they change, or after
the next sweep.

Without -confirm it prints what would be deleted. It exits with 1 if nothing was
deleted or anything could not be. It refuses to act where a directory could not
be listed, and if all databases match, unless that was asked for with -match '*'.`

const purgeFlagHelp = matchFlagHelp + `	-gone
	    Only databases that are not on disk. Needs -older-than.

	-older-than DURATION
	    With -gone: only if the newest backup is older, e.g. 90d or 12h. That
	    is not since when the database is gone.

	-confirm NUM
	    Deletes, if NUM is the number of backups that a run without it has
	    printed.

`

// fleetPurge is `purge` with its flags.
type fleetPurge struct {
	opt       taskOptions
	olderThan age
	confirm   confirmation
}

func setupPurge(fs *flag.FlagSet) commandFunc {
	c := &fleetPurge{opt: taskOptions{kind: taskPurge}}
	fs.StringVar(&c.opt.match, "match", "", "shell pattern of original paths")
	fs.BoolVar(&c.opt.gone, "gone", false, "only databases that are not on disk")
	fs.Var(&c.olderThan, "older-than", "only if the newest backup is older")
	fs.Var(&c.confirm, "confirm", "number of backups")
	return c.run
}

// age is the value of a flag: a duration that may have days. 0: it was not given.
type age time.Duration

func (a *age) String() string { return formatDuration(time.Duration(*a)) }

func (a *age) Set(text string) error {
	d, err := parseDays(text)
	if err != nil || d <= 0 {
		return errors.New("must be a duration such as 90d or 12h")
	}
	*a = age(d)
	return nil
}

// parseDays is time.ParseDuration, to which days are known if they come first.
func parseDays(text string) (time.Duration, error) {
	const day = 24 * time.Hour
	number, rest, ok := strings.Cut(text, "d")
	if !ok {
		return time.ParseDuration(text)
	}
	days, err := strconv.ParseUint(number, 10, 64)
	if err != nil || days > uint64(1<<63-1)/uint64(day) {
		return 0, fmt.Errorf("invalid duration %s", quote(text))
	}
	d := time.Duration(days) * day
	if rest == "" {
		return d, nil
	}
	more, err := time.ParseDuration(rest)
	if err != nil || more < 0 || d+more < d {
		return 0, fmt.Errorf("invalid duration %s", quote(text))
	}
	return d + more, nil
}

// confirmation is the value of a flag that counts only if it was given.
type confirmation struct {
	given bool
	count uint64
}

func (c *confirmation) String() string { return strconv.FormatUint(c.count, 10) }

func (c *confirmation) Set(text string) (err error) {
	c.given = true
	if c.count, err = strconv.ParseUint(text, 10, 64); err != nil {
		return errors.New("must be the number of backups that would be deleted")
	}
	return nil
}

// purgeRow is the JSON form of one database of `purge`.
type purgeRow struct {
	Path    string  `json:"path"`
	Key     string  `json:"key"` // prefix of its objects
	Backups uint64  `json:"backups"`
	Bytes   uint64  `json:"bytes"`
	Newest  *string `json:"newest"`
}

type purgeSummary struct {
	Databases uint64 `json:"databases"`
	Backups   uint64 `json:"backups"`
	Bytes     uint64 `json:"bytes"`
	Deleted   uint64 `json:"deleted"`
	Confirmed bool   `json:"confirmed"`
}

func (c *fleetPurge) complete(path string) error {
	c.opt.path = path
	switch {
	case path != "" && (c.opt.match != "" || c.opt.gone):
		return errors.New("cannot use -match or -gone with a path")
	case c.opt.gone && c.olderThan == 0:
		return errors.New("-gone needs -older-than, e.g. -older-than 90d")
	case !c.opt.gone && c.olderThan != 0:
		return errors.New("-older-than needs -gone; retention deletes old backups of databases that are there")
	case path == "" && c.opt.match == "" && !c.opt.gone:
		return errors.New("what to purge? Give the path of a database, -match, or -gone and -older-than")
	}
	if c.opt.gone {
		c.opt.olderThan = time.Now().Add(-time.Duration(c.olderThan))
	}
	c.opt.confirmCount = c.confirm.count
	return nil
}

func (c *fleetPurge) run(ctx context.Context, req *request) error {
	if err := c.complete(req.path); err != nil {
		return err
	}
	if c.opt.gone && req.otherHost {
		return errors.New("cannot use -gone with -host: what is gone on another host cannot be seen from here")
	}
	f, end, err := req.begin(ctx)
	if err != nil {
		return err
	}
	defer end()

	out, m := newRowWriter(req.out, req.asJSON, "DATABASE", "BACKUPS", "SIZE", "NEWEST"), newMeter(req.errOut, backupsText)
	var s purgeSummary
	var failed uint64
	p, err := runTask(ctx, f, c.opt, out, m, func(r *row) {
		s.add(r)
		if r.status == rowFailed {
			failed++
			m.println("failed %s: %s", r.path, r.message)
		}
		newest := nameTime(r.time)
		out.object(purgeRow{r.path, r.key, r.objects, r.objectsSize, newest})
		out.line("%s\t%d\t%s\t%s", r.path, r.objects, humanize.Bytes(r.objectsSize), orDash(newest))
	})
	if err != nil && p.removed > 0 {
		return fmt.Errorf("%w; %d of %d backups deleted before", err, p.removed, p.objects)
	} else if err != nil {
		return err
	}
	s.Deleted, s.Confirmed = p.removed, c.confirm.given && p.confirmed
	c.printSummary(out, s)
	if err := out.summary(s); err != nil {
		return err
	}
	return c.fault(req.cfg, f, s, failed)
}

func (s *purgeSummary) add(r *row) {
	s.Databases++
	s.Backups += r.objects
	s.Bytes += r.objectsSize
}

func (c *fleetPurge) printSummary(out *rowWriter, s purgeSummary) {
	switch {
	case s.Databases == 0:
	case s.Confirmed:
		out.line("deleted %s of %s", plural(s.Deleted, "backup", "backups"), plural(s.Databases, "database", "databases"))
	case !c.confirm.given:
		out.line("would delete %s of %s; to do it, repeat with -confirm %d",
			plural(s.Backups, "backup", "backups"), plural(s.Databases, "database", "databases"), s.Backups)
	}
}

func (c *fleetPurge) fault(cfg *Config, f fleet, s purgeSummary, failed uint64) error {
	switch {
	case s.Databases == 0 && c.opt.gone:
		return fmt.Errorf("no database is gone with its newest backup older than %s", c.olderThan.String())
	case s.Databases == 0:
		return noBackups(cfg, f, c.opt)
	case !c.confirm.given:
		return errors.New("nothing deleted")
	case !s.Confirmed:
		return fmt.Errorf("nothing deleted: -confirm %d was given, and it would be %s of %s", c.confirm.count,
			plural(s.Backups, "backup", "backups"), plural(s.Databases, "database", "databases"))
	case failed > 0:
		return fmt.Errorf("%d of %d databases could not be purged", failed, s.Databases)
	}
	return nil
}
