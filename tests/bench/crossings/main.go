// Command crossings counts how often a cycle of the replicator goes from Go to C.
//
//	crossings FLEET STATE_DIR TARGET FAILURES
//
// It replicates FLEET/{group}/{tenant}.db to the directory TARGET every second, as
// `litestream replicate` does, and prints the calls of an idle cycle (the most of five), and
// those of a cycle in which FAILURES databases, which it cuts off, fail anew:
//
//	idle CALLS
//	failing CALLS
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	multidb "litestream-multidb/cgo"
)

const config = `multi_db:
  discovery_pattern: %q
  sync_interval: 1s
  state_dir: %q
  file:
    directory: %q
    path: "{{group}}/{{tenant}}"
`

type stats struct {
	Cycles   uint64 `json:"cycles"`
	Unsynced uint64 `json:"unsynced"`
	Changed  uint64 `json:"changed_last_cycle"`
	Failed   int    `json:"databases_failed"`
}

// readStats asks the handler of /stats, which makes no call to C.
func readStats() (s stats) {
	answer := httptest.NewRecorder()
	http.DefaultServeMux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/stats", nil))
	if err := json.Unmarshal(answer.Body.Bytes(), &s); err != nil {
		return stats{}
	}
	return s
}

// nextCycle waits until one more cycle is over, and what follows it, too.
func nextCycle() stats {
	before := readStats().Cycles
	for readStats().Cycles == before {
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond)
	return readStats()
}

// callsOfCycle is to be called between two cycles.
func callsOfCycle() (int64, stats) {
	before := runtime.NumCgoCall()
	s := nextCycle()
	return runtime.NumCgoCall() - before, s
}

// cutOff makes databases of the fleet fail.
func cutOff(fleet string, count int) error {
	paths, err := filepath.Glob(filepath.Join(fleet, "*", "*.db"))
	if err != nil || len(paths) < count {
		return fmt.Errorf("%d databases of %d: %w", len(paths), count, err)
	}
	for _, path := range paths[:count] {
		if err := os.Truncate(path, 8192); err != nil {
			return err
		}
	}
	return nil
}

func run(fleet, stateDir, target string, failures int) error {
	text := fmt.Sprintf(config, fleet+"/{group}/{tenant}.db", stateDir, target)
	cfg, err := multidb.ParseConfig([]byte(text), multidb.Globals{})
	if err != nil {
		return err
	}
	slog.SetDefault(slog.New(slog.DiscardHandler))
	ctx := context.Background()
	r, err := multidb.Open(ctx, cfg, multidb.Options{Version: "bench"})
	if err != nil {
		return err
	}
	r.RegisterHTTP()
	r.Start()
	for s := nextCycle(); s.Cycles < 3 || s.Unsynced > 0 || s.Changed > 0; {
		s = nextCycle()
	}
	var most int64
	for range 5 {
		calls, s := callsOfCycle()
		if s.Changed > 0 {
			return fmt.Errorf("%d databases changed in an idle cycle", s.Changed)
		}
		most = max(most, calls)
	}
	if err := cutOff(fleet, failures); err != nil {
		return err
	}
	calls, s := callsOfCycle()
	if s.Failed != failures {
		return fmt.Errorf("%d databases fail, not %d", s.Failed, failures)
	}
	fmt.Printf("idle %d\nfailing %d\n", most, calls)
	return r.Close(ctx, 0)
}

func main() {
	if len(os.Args) != 5 {
		log.Fatal("usage: crossings FLEET STATE_DIR TARGET FAILURES")
	}
	failures, err := strconv.Atoi(os.Args[4])
	if err != nil {
		log.Fatal(err)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], failures); err != nil {
		log.Fatal(err)
	}
}
