package multidb

import (
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

const (
	// progressInterval is how often a line is printed where there is no terminal.
	progressInterval = 10 * time.Second

	// progressBarInterval bounds how often the bar on a terminal is drawn.
	progressBarInterval = 100 * time.Millisecond

	// progressBarWidth is the width of a terminal from which on there is a bar.
	progressBarWidth = 80
)

// meter shows how far a task is: a bar on a terminal, else a line now and then. A
// nil meter shows nothing.
type meter struct {
	out   io.Writer
	text  func(p progress, elapsed time.Duration) string
	bar   *progressbar.ProgressBar // nil: lines
	known bool                     // the bar has its length
	start time.Time
	last  time.Time // when something was shown
}

func newMeter(out io.Writer, text func(p progress, elapsed time.Duration) string) *meter {
	now := time.Now()
	m := &meter{out: out, text: text, start: now, last: now}
	if f, ok := out.(*os.File); ok {
		// Where the text fills the line, drawing it again and again would scroll.
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width >= progressBarWidth {
			m.bar = newBar(out)
		}
	}
	return m
}

// newBar returns a bar whose length is not known yet. What it says is our text.
func newBar(out io.Writer) *progressbar.ProgressBar {
	return progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(out),
		progressbar.OptionSetElapsedTime(false),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionSetSpinnerChangeInterval(0), // no goroutine of its own
		progressbar.OptionUseANSICodes(true),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionFullWidth())
}

// update shows p. Nothing of the display can fail in a way that matters.
func (m *meter) update(p progress) {
	if m == nil {
		return
	}
	interval := progressInterval
	if m.bar != nil {
		interval = progressBarInterval
	}
	if time.Since(m.last) < interval {
		return
	}
	m.last = time.Now()
	text := m.text(p, time.Since(m.start))
	if m.bar == nil {
		fmt.Fprintln(m.out, text)
		return
	}
	m.bar.Describe(text)
	if !p.listed || p.total == 0 {
		return
	}
	if !m.known {
		m.known = true
		m.bar.ChangeMax64(int64(p.total))
	}
	_ = m.bar.Set64(int64(min(p.done, p.total)))
}

// clear makes room for a line of text.
func (m *meter) clear() {
	if m != nil && m.bar != nil {
		_ = m.bar.Clear()
	}
}

// println prints a line above the bar.
func (m *meter) println(format string, args ...any) {
	m.clear()
	fmt.Fprintf(m.out, format+"\n", args...)
}

// databasesText tells how many databases were, for one, restored.
func databasesText(done string) func(progress, time.Duration) string {
	return func(p progress, elapsed time.Duration) string {
		if p.total == 0 && !p.listed {
			return objectsText(p, elapsed)
		}
		text := fmt.Sprintf("%s %d of %d databases", done, p.done, p.total)
		if !p.listed {
			text += " found so far"
		}
		text += ", " + humanize.Bytes(p.doneSize)
		if seconds := elapsed.Seconds(); seconds > 0 {
			text += ", " + humanize.Bytes(uint64(float64(p.doneSize)/seconds)) + "/s"
		}
		if left, ok := timeLeft(p, elapsed); ok {
			text += ", " + formatTimeLeft(left) + " left"
		}
		return text
	}
}

// objectsText tells how much of the target was listed.
func objectsText(p progress, _ time.Duration) string {
	return fmt.Sprintf("listed %d objects", p.ours+p.foreign)
}

// backupsText tells how many backups were deleted.
func backupsText(p progress, elapsed time.Duration) string {
	if !p.listed || p.removed == 0 {
		return objectsText(p, elapsed)
	}
	return fmt.Sprintf("deleted %d of %d backups", p.removed, p.objects)
}

// timeLeft estimates by databases and by bytes, and takes the longer: small
// databases cost requests, large ones bytes.
func timeLeft(p progress, elapsed time.Duration) (time.Duration, bool) {
	if !p.listed || p.done == 0 || p.done > p.total {
		return 0, false
	}
	rest := float64(p.total-p.done) / float64(p.done)
	if p.doneSize > 0 && p.totalSize > p.doneSize {
		rest = max(rest, float64(p.totalSize-p.doneSize)/float64(p.doneSize))
	}
	left := rest * float64(elapsed)
	return time.Duration(min(left, math.MaxInt64/2)), true
}

// formatTimeLeft has one unit, as an estimate is not worth more.
func formatTimeLeft(d time.Duration) string {
	switch {
	case d < 100*time.Second:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 100*time.Minute:
		return fmt.Sprintf("%.0f min", d.Minutes())
	}
	return fmt.Sprintf("%.0f h", d.Hours())
}
