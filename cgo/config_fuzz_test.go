package multidb

import (
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v2"
)

// Secrets of the seeds. One may be in an error only if it does not stand where a secret belongs.
const fuzzSecret = "hush"

var fuzzSecretLine = regexp.MustCompile(`(?m)^ *secret[_-]access[_-]key: "?` + fuzzSecret + `"?$`)

// FuzzConfig reads any text as a configuration file. What is accepted is within its
// limits and means the same once it is written anew; what is not gets one line.
func FuzzConfig(f *testing.F) {
	full := `
multi-db:
  discovery-pattern: /data/{project}/*.db
  sync-interval: 1m30s
  snapshot-window: 0s
  retention: 0
  state-dir: /var/lib/multidb/
  memory-limit: 64MiB
  allow-any-filesystem: yes
  s3:
    region: 123
    bucket: backups
    path: "{{project}}/{{hostname}}/{{tenant}}"
    endpoint: http://127.0.0.1:9000/
    access-key-id: 0123
    secret-access-key: hush
    skip-verify: true
    max-concurrent-uploads: 1000
    storage-class: STANDARD_IA
    sse: aws:kms
    sse-kms-key-id: key
`
	for _, text := range []string{
		seedConfig,
		full,
		"multi_db:\n  discovery_pattern: /data/**/{tenant}.db\n  file:\n    directory: /backup/\n    path: \"{{a}}/{{tenant}}\"\n",
		"x-base: &base\n  bucket: base\n  path: \"{{t}}\"\nmulti_db:\n  discovery_pattern: /data/*.db\n  s3:\n    <<: *base\n    bucket: own-bucket\n",
		strings.Replace(full, "hush", "\"hush\"\n    secret_access_key: hush", 1),
		strings.Replace(full, "  s3:", "  bogus: |\n    a\n    b\n  s3:", 1),
		strings.Replace(seedConfig, "30s", "!!binary aHVzaA==", 1),
		"multi_db: [1, {a: b}]\n", "multi_db:\n", "multi_dbs: {}\n", "- multi_db\n", "{\"multi_db\": {\"s3\": null}}\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		config, err := ParseConfig(text, Globals{AccessKeyID: "global", SecretAccessKey: "global"})
		if err != nil {
			checkConfigError(t, text, config, err)
		} else if config != nil {
			checkConfig(t, config)
		}
	})
}

func checkConfigError(t *testing.T, text []byte, config *Config, err error) {
	message := err.Error()
	if config != nil || message == "" {
		t.Fatalf("config=%+v beside error %q", config, message)
	}
	secrets := strings.Count(string(text), fuzzSecret)
	if secrets > 0 && secrets == len(fuzzSecretLine.FindAll(text, -1)) && strings.Contains(message, fuzzSecret) {
		t.Fatalf("secret in %q", message)
	}
	if !strings.HasPrefix(message, "yaml: ") && (strings.ContainsFunc(message, isControl) || len(message) > 2000) {
		t.Fatalf("error of more than a line: %q", message)
	}
}

func checkConfig(t *testing.T, config *Config) {
	if config.SyncInterval < MinSyncInterval || config.SyncInterval > MaxSyncInterval ||
		config.SnapshotWindow < 0 || config.SnapshotWindow > MaxSnapshotWindow || config.SnapshotWindow%time.Second != 0 ||
		config.MinInterval < 0 || config.MinInterval > MaxMinInterval || config.Retention < 0 || config.MemoryLimit < MinMemoryLimit || config.Format != DefaultFormat ||
		!strings.HasPrefix(config.DiscoveryPattern, "/") || (config.S3 == nil) == (config.File == nil) {
		t.Fatalf("out of limits: %+v", config)
	}
	uploads := 0
	if config.S3 != nil {
		uploads = config.S3.MaxConcurrentUploads
		if config.S3.Bucket == "" || (config.S3.AccessKeyID == "") != (config.S3.SecretAccessKey == "") {
			t.Fatalf("out of limits: %+v", config.S3)
		}
	} else if uploads = config.File.MaxConcurrentUploads; !strings.HasPrefix(config.File.Directory, "/") {
		t.Fatalf("out of limits: %+v", config.File)
	}
	if uploads < 1 || uploads > MaxMaxConcurrentUploads {
		t.Fatalf("%d uploads", uploads)
	}
	text, err := yaml.Marshal(map[string]any{"multi_db": writtenConfig(config)})
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseConfig(text, Globals{})
	if err != nil || !reflect.DeepEqual(config, again) {
		t.Fatalf("%+v\nwritten as\n%s\nis %+v, %v", config, text, again, err)
	}
}

// writtenConfig returns the section that says what config does, with nothing left out.
func writtenConfig(config *Config) map[string]any {
	section := map[string]any{
		"discovery_pattern": config.DiscoveryPattern, "sync_interval": config.SyncInterval.String(),
		"snapshot_window": config.SnapshotWindow.String(), "retention": config.Retention.String(),
		"format": config.Format, "state_dir": config.StateDir, "memory_limit": config.MemoryLimit,
		"allow_any_filesystem": config.AllowAnyFilesystem, "min_interval": config.MinInterval.String(),
	}
	if s3 := config.S3; s3 != nil {
		section["s3"] = map[string]any{
			"region": s3.Region, "bucket": s3.Bucket, "path": s3.Path, "endpoint": s3.Endpoint,
			"force_path_style": s3.ForcePathStyle, "access_key_id": s3.AccessKeyID,
			"secret_access_key": s3.SecretAccessKey, "skip_verify": s3.SkipVerify,
			"max_concurrent_uploads": s3.MaxConcurrentUploads, "storage_class": s3.StorageClass,
			"sse": s3.SSE, "sse_kms_key_id": s3.SSEKMSKeyID,
		}
	} else {
		section["file"] = map[string]any{
			"directory": config.File.Directory, "path": config.File.Path,
			"max_concurrent_uploads": config.File.MaxConcurrentUploads,
		}
	}
	return section
}
