// Package day is the replicator's own loop over the real core, in a bubble of
// synctest: its intervals pass at once when all work is done. p35_day_test.go builds
// it, gives it a clock for the core and databases that change, and holds time still
// between cycles.
package day

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	multidb "litestream-multidb/cgo"
)

// TestLoop prints a line when a cycle is over, and goes on to the next when a line is
// read. It ends when there is none.
func TestLoop(t *testing.T) {
	text, err := os.ReadFile(os.Getenv("DAY_CONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := multidb.ParseConfig(text, multidb.Globals{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", os.Getenv("DAY_ADDR"))
	if err != nil {
		t.Fatal(err)
	}
	go http.Serve(l, nil) // in real time, as in production: /stats
	in := bufio.NewScanner(os.Stdin)
	synctest.Test(t, func(t *testing.T) {
		r, err := multidb.Open(t.Context(), cfg, multidb.Options{Version: "day"})
		if err != nil {
			t.Fatal(err)
		}
		r.RegisterHTTP()
		r.Start()
		time.Sleep(cfg.SyncInterval / 2) // in the middle between two cycles
		for {
			fmt.Println("idle")
			if !in.Scan() {
				break
			}
			time.Sleep(cfg.SyncInterval)
		}
		if err := r.Close(t.Context(), 0); err != nil {
			t.Error(err)
		}
	})
}
