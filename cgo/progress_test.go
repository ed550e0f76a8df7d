package multidb

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestProgressText(t *testing.T) {
	restored := databasesText("restored")
	for _, tt := range []struct {
		text    func(progress, time.Duration) string
		p       progress
		elapsed time.Duration
		want    string
	}{
		{restored, progress{listed: true, total: 20000, totalSize: 2e9, done: 12000, doneSize: 1.2e9}, 60 * time.Second,
			"restored 12000 of 20000 databases, 1.2 GB, 20 MB/s, 40 s left"},
		{restored, progress{listed: true, total: 100, totalSize: 11e6, done: 50, doneSize: 1e6}, 10 * time.Second,
			"restored 50 of 100 databases, 1.0 MB, 100 kB/s, 2 min left"}, // the bytes take longer
		{restored, progress{total: 1500, done: 12, doneSize: 24e3}, 2 * time.Second,
			"restored 12 of 1500 databases found so far, 24 kB, 12 kB/s"},
		{restored, progress{listed: true, total: 10}, time.Second, "restored 0 of 10 databases, 0 B, 0 B/s"},
		{restored, progress{listed: true, total: 10, totalSize: 10, done: 10, doneSize: 10}, time.Second,
			"restored 10 of 10 databases, 10 B, 10 B/s, 0 s left"},
		{restored, progress{ours: 3000, foreign: 2}, time.Second, "listed 3002 objects"},
		{backupsText, progress{ours: 3000}, time.Second, "listed 3000 objects"},
		{backupsText, progress{listed: true, objects: 30, removed: 10}, time.Second, "deleted 10 of 30 backups"},
	} {
		if got := tt.text(tt.p, tt.elapsed); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0 s", 99 * time.Second: "99 s", 100 * time.Second: "2 min", 99 * time.Minute: "99 min", 3 * time.Hour: "3 h",
		1 << 62: "1281024 h",
	} {
		if got := formatTimeLeft(d); got != want {
			t.Errorf("%d: got %q, want %q", d, got, want)
		}
	}
	if left, ok := timeLeft(progress{listed: true, total: 1 << 40, done: 1}, time.Hour*1e4); !ok || left <= 0 {
		t.Errorf("a long time left became %v, %v", left, ok)
	}
}

// Without a terminal there is a line every ten seconds.
func TestMeter_Lines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		m := newMeter(&out, databasesText("verified"))
		for range 25 {
			time.Sleep(time.Second)
			m.update(progress{listed: true, total: 100, done: 50})
		}
		m.println("failed %s", "/a.db")
		m.clear()
		want := "verified 50 of 100 databases, 0 B, 0 B/s, 10 s left\n" +
			"verified 50 of 100 databases, 0 B, 0 B/s, 20 s left\nfailed /a.db\n"
		if out.String() != want {
			t.Errorf("got %q, want %q", &out, want)
		}
	})
	var none *meter
	none.update(progress{})
	none.clear()
}

func TestMeter_Bar(t *testing.T) {
	var out bytes.Buffer
	m := newMeter(&out, databasesText("restored"))
	m.bar = newBar(&out)
	update := func(p progress) {
		time.Sleep(progressBarInterval)
		m.update(p)
	}
	update(progress{ours: 10})
	update(progress{total: 4, done: 1})
	update(progress{listed: true, total: 4, done: 1})
	update(progress{listed: true, total: 4, done: 2})
	m.println("failed %s", "/a.db")
	update(progress{listed: true, total: 4, done: 4})
	update(progress{listed: true, total: 4, done: 4})
	m.clear()
	for _, want := range []string{"listed 10 objects", "restored 1 of 4 databases found so far",
		"restored 2 of 4 databases", "50%", "\033[2K\rfailed /a.db\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, &out)
		}
	}
	if !strings.HasSuffix(out.String(), "\033[2K\r") {
		t.Errorf("the bar stays: %q", &out)
	}
}
