package multidb

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
)

// planSamples is how many paths `plan` shows with their keys.
const planSamples = 10

const planHelp = `walks the files that the discovery pattern matches and
shows what would be backed up: how many databases, the key that each of a few
of them gets, names that give no legal key, and what the requests would cost:
the first sync, a day on which some of the databases change all the time, and a
day at the present rate of change, if replicate has run with this state_dir.
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
	FirstSyncPuts         uint64       `json:"first_sync_puts"`
	FirstSyncUSD          float64      `json:"first_sync_usd"`
	USDPerThousandUploads float64      `json:"usd_per_thousand_uploads"`
	IfChanging            []changeCost `json:"if_changing"` // all the time
	Present               *presentCost `json:"present"`     // null: not known
}

// presentCost is what replicate has found after its last cycle.
type presentCost struct {
	Time       string  `json:"time"` // of that
	PutsPerDay float64 `json:"puts_per_day"`
	USDPerDay  float64 `json:"usd_per_day"`
}

func runPlan(ctx context.Context, req *request) error {
	f, end, err := req.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	p, err := f.plan(planSamples)
	if err != nil {
		return err
	}
	output := newPlanOutput(req.cfg, p)
	if req.asJSON {
		err = printJSON(req.out, output)
	} else {
		err = printPlan(req.out, output)
	}
	if err != nil {
		return err
	}
	return joinFaults(walkFaults(req.cfg, p))
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
			IfChanging:            changeCosts(cfg, puts),
			Present:               readPresentCost(cfg),
		}
	}
	return output
}

// changeCosts is for 1 %, 10 % and all of the databases, each number once.
func changeCosts(cfg *Config, databases uint64) []changeCost {
	costs := make([]changeCost, 0, 3)
	for _, fraction := range []uint64{100, 10, 1} {
		changing := (databases + fraction - 1) / fraction
		if n := len(costs); changing > 0 && (n == 0 || changing > costs[n-1].Changing) {
			costs = append(costs, newChangeCost(cfg, changing))
		}
	}
	return costs
}

// readPresentCost returns nil where replicate has left nothing that can be used.
func readPresentCost(cfg *Config) *presentCost {
	last := readLastCycle(cfg)
	if last == nil {
		return nil
	}
	return &presentCost{last.LastScan, last.PutsPerDay, last.CostUSDPerDay}
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
		fmt.Fprintf(w, "afterwards\teach 1,000 uploads cost $%.3f\n", p.Cost.USDPerThousandUploads)
		for _, c := range p.Cost.IfChanging {
			fmt.Fprintf(w, "if %d change all the time\t%d PUT = $%.2f a day\n", c.Changing, c.PutsPerDay, c.USDPerDay)
		}
		if c := p.Cost.Present; c != nil {
			fmt.Fprintf(w, "at the present rate\t%.0f PUT, with everything else $%.2f a day (as of %s)\n", c.PutsPerDay, c.USDPerDay, c.Time)
		}
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
