package multidb

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// taskTick is how long a command waits for rows before it looks at other things.
const taskTick = time.Second

// reader is a handle opened for reading, and what renews its credentials.
type reader struct {
	*core
	creds *credentialSource // nil: the target needs none
}

// openForReading opens the fleet without its lock, so that it works beside a
// running replicate. It has no credentials before the first signIn.
func openForReading(cfg *Config) (*reader, error) {
	core, err := openCore(cfg, true)
	if err != nil {
		return nil, fmt.Errorf("open multi_db: %w", err)
	}
	r := &reader{core: core}
	if cfg.S3 != nil {
		r.creds = newCredentialSource(cfg.S3, core.setCredentials, logger())
	}
	return r, nil
}

func openFleet(cfg *Config) (fleet, error) {
	r, err := openForReading(cfg)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// signIn gets the credentials that can be had, and new ones once those expire.
func (r *reader) signIn(ctx context.Context) {
	if r.creds != nil {
		r.creds.refreshDuringCycle(ctx)
	}
}

// begin opens the fleet until the end of the command, which cancels what is under way
// when ctx is done.
func (req *request) begin(ctx context.Context) (f fleet, end func(), err error) {
	if f, err = req.open(req.cfg); err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, f.cancel)
	return f, func() {
		stop()
		f.close()
	}, nil
}

// runTask runs a task to its end. Each row is handed to EACH, and what that prints
// to OUT is flushed once for every batch. The progress is good with an error, too.
func runTask(ctx context.Context, f fleet, opt taskOptions, out *rowWriter, m *meter, each func(*row)) (progress, error) {
	f.signIn(ctx)
	t, err := f.startTask(opt)
	if err != nil {
		return progress{}, err
	}
	defer t.close()
	defer m.clear()
	for {
		rows, p, err := t.next(taskTick)
		for i := range rows {
			each(&rows[i])
		}
		if out.buf.Buffered() > 0 {
			m.clear()
		}
		if flushErr := out.buf.Flush(); flushErr != nil {
			return p, flushErr
		}
		if err != nil || p.finished {
			return p, err
		}
		m.update(p)
		f.signIn(ctx)
	}
}

// rowWriter prints rows as they come and, last, their summary: as text, or as JSON
// with one object on a line.
type rowWriter struct {
	buf    *bufio.Writer
	json   *json.Encoder // nil: text
	header string        // before the first line; "": none, or printed
}

func newRowWriter(out io.Writer, asJSON bool, columns ...string) *rowWriter {
	w := &rowWriter{buf: bufio.NewWriter(out), header: strings.Join(columns, "\t")}
	if asJSON {
		w.json = json.NewEncoder(w.buf)
		w.json.SetEscapeHTML(false)
	}
	return w
}

// object prints v if the output is JSON.
func (w *rowWriter) object(v any) {
	if w.json != nil {
		_ = w.json.Encode(v) // a failed write comes back from Flush
	}
}

// line prints a line if the output is text.
func (w *rowWriter) line(format string, args ...any) {
	if w.json != nil {
		return
	}
	if w.header != "" {
		fmt.Fprintln(w.buf, w.header)
		w.header = ""
	}
	fmt.Fprintf(w.buf, format+"\n", args...)
}

// summary ends the output. Without it the output is not complete.
func (w *rowWriter) summary(v any) error {
	w.object(struct {
		Summary any `json:"summary"`
	}{v})
	return w.buf.Flush()
}

// noBackups says that a task has found nothing of what it was to look for.
func noBackups(cfg *Config, f hostLister, opt taskOptions) error {
	what := opt.path
	if what == "" {
		what = opt.match
	}
	if what == "" {
		what = pathTemplate(cfg)
	}
	return withHosts(cfg, f, fmt.Errorf("no backup in the target matches %q", what))
}

type hostLister interface{ hosts() ([]string, error) }

// withHosts adds to an error about backups that are not there which hosts have some.
func withHosts(cfg *Config, f hostLister, err error) error {
	if cfg.Hostname == "" {
		return err
	}
	names, hostsErr := f.hosts()
	switch {
	case hostsErr != nil: // of no interest beside err
		return fmt.Errorf("%w (of host %q; -host NAME looks for those of another)", err, cfg.Hostname)
	case len(names) == 0, len(names) == 1 && names[0] == cfg.Hostname:
		return err
	case slices.Contains(names, cfg.Hostname):
		return fmt.Errorf("%w (of host %q; hosts present: %s)", err, cfg.Hostname, strings.Join(names, ", "))
	}
	return errHost(cfg, names)
}

// hostFault is an error if only other hosts than ours have backups.
func hostFault(cfg *Config, f hostLister) error {
	if cfg.Hostname == "" {
		return nil
	}
	names, err := f.hosts()
	if err != nil || len(names) == 0 || slices.Contains(names, cfg.Hostname) {
		return nil
	}
	return errHost(cfg, names)
}

func errHost(cfg *Config, present []string) error {
	return &Error{Code: ErrNotFound, Message: fmt.Sprintf("no backups of host %q in the target; hosts present: %s (-host NAME)",
		cfg.Hostname, strings.Join(present, ", "))}
}

func pathTemplate(cfg *Config) string {
	if cfg.S3 != nil {
		return cfg.S3.Path
	}
	return cfg.File.Path
}

// requestCost is in US dollars, 0 for a directory.
func requestCost(cfg *Config, calls apiCalls) float64 {
	if cfg.S3 == nil {
		return 0
	}
	return math.Round(calls.usd()*1e9) / 1e9
}

// costText is "" for a directory.
func costText(cfg *Config, calls apiCalls) string {
	if cfg.S3 == nil {
		return ""
	}
	cost := requestCost(cfg, calls)
	decimals := 2
	if cost < 0.01 {
		decimals = 6
	}
	return fmt.Sprintf("; %d GET, %d LIST = $%.*f", calls.get, calls.list, decimals, cost)
}

// elapsedSeconds are rounded to milliseconds.
func elapsedSeconds(start time.Time) float64 {
	return math.Round(time.Since(start).Seconds()*1000) / 1000
}

// nameTime formats the time in the name of an object; nil if there is none.
func nameTime(t time.Time) *string { return timeIn(time.RFC3339, t) }

// snapshotTime formats the time of a snapshot; nil if it was not read.
func snapshotTime(t time.Time) *string { return timeIn(time.RFC3339Nano, t) }

func timeIn(layout string, t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := t.UTC().Format(layout)
	return &s
}

// orDash is for columns that have no value.
func orDash(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}

// fileMode formats permission bits as in trailers; "" if they were not read.
func fileMode(r *row) string {
	if r.snapshotTime.IsZero() {
		return ""
	}
	return fmt.Sprintf("%04o", r.mode)
}
