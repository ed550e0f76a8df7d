//go:build !cgo || !linux

package multidb

import (
	"errors"
	"time"
)

// errNoCore is what everything but reading the configuration answers in a build
// that could not link the C core.
var errNoCore = errors.New("this litestream was built without cgo (CGO_ENABLED=0) or not for Linux; " +
	"multi_db needs a build for Linux with cgo: run `make`")

type core struct{}

func openCore(*Config, bool) (*core, error) { return nil, errNoCore }

func (*core) cycle() (cycleResult, error)                   { return cycleResult{}, errNoCore }
func (*core) stats() (coreStats, error)                     { return coreStats{}, errNoCore }
func (*core) failures() ([]failure, error)                  { return nil, errNoCore }
func (*core) nextEvents() ([]event, error)                  { return nil, errNoCore }
func (*core) setCredentials(credentials) error              { return errNoCore }
func (*core) plan(int) (planResult, error)                  { return planResult{}, errNoCore }
func (*core) restore(restoreOptions) (restoreResult, error) { return restoreResult{}, errNoCore }
func (*core) startTask(taskOptions) (task, error)           { return nil, errNoCore }
func (*core) hosts() ([]string, error)                      { return nil, errNoCore }
func (*core) exclude(string) error                          { return errNoCore }
func (*core) acquire(bool, time.Duration) error             { return errNoCore }
func (*core) release(time.Duration) error                   { return errNoCore }
func (*core) carry(bool)                                    {}
func (*core) flush()                                        {}
func (*core) sweep()                                        {}
func (*core) finish()                                       {}
func (*core) cancel()                                       {}
func (*core) close()                                        {}

// checkCore accepts everything: commands that do not need multi_db must still run.
func checkCore(*Config) error { return nil }

// Matches reports whether the discovery pattern could match path.
func (c *Config) Matches(path string) (bool, error) { return false, errNoCore }

// Prefix returns the longest wildcard-free directory of the discovery pattern.
func (c *Config) Prefix() (string, error) { return "", errNoCore }
