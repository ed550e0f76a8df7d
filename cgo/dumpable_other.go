//go:build !linux

package multidb

func forbidCoreFiles() error { return nil }
