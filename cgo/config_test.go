package multidb

import (
	"os"
	"strings"
	"testing"
	"time"
)

// The configuration of the first issue, verbatim.
const seedConfig = `
multi_db:
  enabled: true
  discovery_pattern: "/data/*/databases/*/branches/*/tenants/*.db"
  sync_interval: 30s
  s3:
    region: us-east-1
    bucket: my-litestream-backups
    path: "{{project}}/{{database}}/{{branch}}/{{tenant}}"
    max_concurrent_uploads: 100
`

func mustParse(t *testing.T, text string, globals Globals) *Config {
	t.Helper()
	config, err := ParseConfig([]byte(text), globals)
	if err != nil {
		t.Fatal(err)
	} else if config == nil {
		t.Fatal("expected a configuration")
	}
	return config
}

func TestParseConfig_Seed(t *testing.T) {
	got := mustParse(t, seedConfig, Globals{})
	want := Config{
		DiscoveryPattern: "/data/*/databases/*/branches/*/tenants/*.db",
		SyncInterval:     30 * time.Second,
		SnapshotWindow:   time.Hour,
		Retention:        720 * time.Hour,
		Format:           "lz4",
		MemoryLimit:      256_000_000,
	}
	wantS3 := S3Config{
		Region:               "us-east-1",
		Bucket:               "my-litestream-backups",
		Path:                 "{{project}}/{{database}}/{{branch}}/{{tenant}}",
		MaxConcurrentUploads: 100,
	}
	if got.S3 == nil || *got.S3 != wantS3 {
		t.Fatalf("s3=%+v, want %+v", got.S3, wantS3)
	}
	if got.S3 = nil; *got != want {
		t.Fatalf("config=%+v, want %+v", *got, want)
	}
}

func TestParseConfig_Full(t *testing.T) {
	got := mustParse(t, `
addr: ":9090"
access-key-id: global
secret-access-key: global
multi-db:
  discovery-pattern: /data/{project}/*.db
  sync-interval: 1m30s
  snapshot-window: 0s
  retention: 0
  min-interval: 30m
  format: lz4
  state-dir: /var/lib/multidb/
  memory-limit: 64MiB
  allow-any-filesystem: yes
  s3:
    region: 123
    bucket: backups
    path: "{{project}}/{{tenant}}"
    endpoint: http://127.0.0.1:9000/
    access-key-id: 0123
    secret-access-key: secret
    skip-verify: true
    max-concurrent-uploads: 1000
    storage-class: STANDARD_IA
    sse: aws:kms
    sse-kms-key-id: key
`, Globals{AccessKeyID: "global", SecretAccessKey: "global"})
	want := Config{
		DiscoveryPattern:   "/data/{project}/*.db",
		SyncInterval:       90 * time.Second,
		MinInterval:        30 * time.Minute,
		Format:             "lz4",
		StateDir:           "/var/lib/multidb",
		MemoryLimit:        64 << 20,
		AllowAnyFilesystem: true,
	}
	wantS3 := S3Config{
		Region:               "123",
		Bucket:               "backups",
		Path:                 "{{project}}/{{tenant}}",
		Endpoint:             "http://127.0.0.1:9000",
		ForcePathStyle:       true,
		AccessKeyID:          "0123",
		SecretAccessKey:      "secret",
		SkipVerify:           true,
		MaxConcurrentUploads: 1000,
		StorageClass:         "STANDARD_IA",
		SSE:                  "aws:kms",
		SSEKMSKeyID:          "key",
	}
	if got.S3 == nil || *got.S3 != wantS3 {
		t.Fatalf("s3=%+v, want %+v", got.S3, wantS3)
	}
	if got.S3 = nil; *got != want {
		t.Fatalf("config=%+v, want %+v", *got, want)
	}
}

func TestParseConfig_File(t *testing.T) {
	got := mustParse(t, `
multi_db:
  discovery_pattern: /data/{tenant}.db
  memory_limit: 16000000
  file:
    directory: /backup/
    path: "{{hostname}}/{{tenant}}"
`, Globals{AccessKeyID: "global", SecretAccessKey: "global"})
	if want := (FileConfig{"/backup", "{{hostname}}/{{tenant}}", 8}); got.File == nil || *got.File != want {
		t.Fatalf("file=%+v, want %+v", got.File, want)
	}
	if got.S3 != nil {
		t.Fatalf("s3=%+v, want nil", got.S3)
	}
	if host, _ := os.Hostname(); got.Hostname != host {
		t.Fatalf("hostname=%q, want %q", got.Hostname, host)
	}
	if got.MemoryLimit != 16_000_000 {
		t.Fatalf("memory limit=%d", got.MemoryLimit)
	}
}

func TestParseConfig_None(t *testing.T) {
	for name, text := range map[string]string{
		"Empty":              "",
		"Absent":             "dbs:\n  - path: /a.db\n    url: s3://b/a\n",
		"Disabled":           strings.Replace(seedConfig, "enabled: true", "enabled: false", 1),
		"DisabledBroken":     "multi_db:\n  enabled: no\n  bogus: [1, 2]\n  sync_interval: never\n  s3: 7\n  s-3: 7\n",
		"Extension":          "x-multi-db:\n  bogus: 1\n",
		"DuplicateElsewhere": "addr: a\naddr: b\n",
	} {
		t.Run(name, func(t *testing.T) {
			if config, err := ParseConfig([]byte(text), Globals{}); err != nil || config != nil {
				t.Fatalf("config=%+v err=%v, want neither", config, err)
			}
		})
	}
}

func TestParseConfig_GlobalKeys(t *testing.T) {
	globals := Globals{AccessKeyID: "id", SecretAccessKey: "secret"}
	if s3 := mustParse(t, seedConfig, globals).S3; s3.AccessKeyID != "id" || s3.SecretAccessKey != "secret" {
		t.Fatalf("global keys not used: %q", s3.AccessKeyID)
	}
	if s3 := mustParse(t, seedConfig, Globals{AccessKeyID: "id"}).S3; s3.AccessKeyID != "" {
		t.Fatalf("half of the global keys used: %q", s3.AccessKeyID)
	}
	empty := seedConfig + "    access_key_id: \"\"\n    secret_access_key:\n"
	if s3 := mustParse(t, empty, globals).S3; s3.AccessKeyID != "id" {
		t.Fatalf("global keys not used for empty ones: %q", s3.AccessKeyID)
	}
}

func TestParseConfig_PathStyle(t *testing.T) {
	for extra, want := range map[string]bool{
		"":                                false,
		"    force_path_style: true\n":    true,
		"    endpoint: \"\"\n":            false,
		"    endpoint: https://[::1]:1\n": true,
		"    endpoint: https://s3.example.com\n    force_path_style: false\n": false,
	} {
		if got := mustParse(t, seedConfig+extra, Globals{}).S3.ForcePathStyle; got != want {
			t.Errorf("%q: path style=%v, want %v", extra, got, want)
		}
	}
}

func TestParseConfig_Merge(t *testing.T) {
	got := mustParse(t, `
x-base: &base
  bucket: base
  path: "{{tenant}}"
  region: eu-west-1
multi_db:
  discovery_pattern: /data/*.db
  s3:
    <<: *base
    bucket: own-bucket
`, Globals{})
	if got.S3.Bucket != "own-bucket" || got.S3.Region != "eu-west-1" {
		t.Fatalf("s3=%+v", got.S3)
	}
}

func TestParseConfig_Errors(t *testing.T) {
	// Builds a configuration from what stands at the top level of the section, in s3.
	build := func(top, s3 string) string {
		text := "multi_db:\n  discovery_pattern: /data/*.db\n" + top + "  s3:\n"
		for _, line := range []string{"bucket: backups", `path: "{{tenant}}"`} {
			if key, _, _ := strings.Cut(line, ":"); !strings.Contains("\n"+s3, "\n    "+key+":") {
				text += "    " + line + "\n"
			}
		}
		return text + s3
	}
	top := func(line string) string { return build("  "+line+"\n", "") }
	s3 := func(lines ...string) string { return build("", "    "+strings.Join(lines, "\n    ")+"\n") }
	file := func(lines ...string) string {
		return "multi_db:\n  discovery_pattern: /data/*.db\n  file:\n    " + strings.Join(lines, "\n    ") + "\n"
	}

	for _, tt := range []struct{ name, text, want string }{
		// Top level of the file.
		{"NearPlural", "multi_dbs: {}\n", "multi_dbs: unknown key; did you mean multi_db?"},
		{"NearJoined", "multidb: {}\n", "multidb: unknown key; did you mean multi_db?"},
		{"NearHyphen", "multi-dbs: {}\n", "multi-dbs: unknown key; did you mean multi_db?"},
		{"NearSwapped", "mutli_db: {}\n", "mutli_db: unknown key; did you mean multi_db?"},
		{"NearLong", "multi_database: {}\n", "multi_database: unknown key; did you mean multi_db?"},
		{"NearCase", "Multi_DB: {}\n", "Multi_DB: unknown key; did you mean multi_db?"},
		{"NearBeside", seedConfig + "multi_d: {}\n", "multi_d: unknown key; did you mean multi_db?"},
		{"BothSpellings", seedConfig + "multi-db:\n  enabled: false\n", "multi-db: written twice; use one multi_db section"},
		{"SectionTwice", seedConfig + seedConfig, "multi_db: written twice; use one multi_db section"},

		// The section.
		{"Null", "multi_db:\n", "multi_db: the section is empty; discovery_pattern and one of s3 or file are required"},
		{"EmptyMap", "multi_db: {}\n", "multi_db: the section is empty; discovery_pattern and one of s3 or file are required"},
		{"List", "multi_db:\n  - s3\n", "multi_db: a list where a section is expected; write its keys on lines of their own, indented"},
		{"EmptyList", "multi_db: []\n", "multi_db: a list where a section is expected; write its keys on lines of their own, indented"},
		{"Scalar", "multi_db: true\n", "multi_db: a plain value where a section is expected; write its keys on lines of their own, indented"},
		{"NoTarget", "multi_db:\n  discovery_pattern: /data/*.db\n", "multi_db: there is no target; s3 or file is required"},
		{"TwoTargets", seedConfig + "  file:\n    directory: /b\n", "multi_db: s3 and file are both set; use exactly one of them"},
		{"NoPattern", "multi_db:\n  s3: {}\n", `multi_db.discovery_pattern: missing or empty; use an absolute pattern such as "/data/*/tenants/*.db"`},
		{"UnknownKey", top("sync_intervall: 30s"), "multi_db.sync_intervall: unknown key; the nearest known one is sync_interval"},
		{"UnknownHyphenKey", top("snapshot-windows: 30s"), "multi_db.snapshot-windows: unknown key; the nearest known one is snapshot_window"},
		{"UnknownCase", top("Format: lz4"), "multi_db.Format: unknown key; the nearest known one is format"},
		{"KeyElsewhere", top("region: eu-west-1"), "multi_db.region: unknown key; the nearest known one is multi_db.s3.region"},
		{"NumberKey", top("7: x"), "multi_db.7: unknown key; the nearest known one is s3"},
		{"KeyTwice", top("format: lz4\n  format: lz4"), "multi_db.format: written twice; use one of them"},
		{"KeyBothSpellings", top("state-dir: /a\n  state_dir: /b"), "multi_db.state_dir: written twice, as state-dir and as state_dir; use one of them"},

		// Values.
		{"Enabled", top("enabled: maybe"), `multi_db.enabled: "maybe" is neither true nor false`},
		{"EnabledTwice", top("enabled: false\n  enabled: true"), "multi_db.enabled: written twice; use one of them"},
		{"EnabledList", top("enabled: [true]"), "multi_db.enabled: a list where one value is expected"},
		{"AnyFilesystem", top("allow_any_filesystem: 2"), `multi_db.allow_any_filesystem: "2" is neither true nor false`},
		{"IntervalUnit", top("sync_interval: 30"), `multi_db.sync_interval: "30" is no duration; use a unit, as in "30s"`},
		{"IntervalShort", top("sync_interval: 500ms"), "multi_db.sync_interval: 500ms is too short; use 1s or more"},
		{"IntervalZero", top("sync_interval: 0s"), "multi_db.sync_interval: 0s is too short; use 1s or more"},
		{"IntervalWord", top("sync_interval: often"), `multi_db.sync_interval: "often" is no duration; use numbers with units, as in "30s"`},
		{"MinIntervalLong", top("min_interval: 8761h"), "multi_db.min_interval: 8761h is out of range; use 0s to 8760h"},
		{"MinIntervalNegative", top("min_interval: -1s"), "multi_db.min_interval: -1s is out of range; use 0s to 8760h"},
		{"IntervalMap", top("sync_interval: {s: 30}"), "multi_db.sync_interval: a section where one value is expected"},
		{"WindowDays", top("snapshot_window: 1d"), `multi_db.snapshot_window: "1d" is no duration; use "24h"`},
		{"WindowNegative", top("snapshot_window: -1h"), "multi_db.snapshot_window: -1h is out of range; use 0s to 87600h"},
		{"WindowLong", top("snapshot_window: 100000h"), "multi_db.snapshot_window: 100000h is out of range; use 0s to 87600h"},
		{"WindowFraction", top("snapshot_window: 1500ms"), `multi_db.snapshot_window: 1.5s is no whole number of seconds; use "2s"`},
		{"RetentionDays", top("retention: 30 days"), `multi_db.retention: "30 days" is no duration; use "720h"`},
		{"RetentionNegative", top("retention: -1s"), "multi_db.retention: -1s is too short; use 0s or more"},
		{"FormatLTX", top("format: ltx"), `multi_db.format: "ltx" is not yet supported; use "lz4"`},
		{"FormatUnknown", top("format: zip"), `multi_db.format: "zip" is unknown; use "lz4"`},
		{"StateDir", top("state_dir: state"), `multi_db.state_dir: "state" is not absolute; use a path that begins with a slash`},
		{"StateDirHome", top("state_dir: ~/state"), `multi_db.state_dir: "~/state" is not absolute; use a path that begins with a slash`},
		{"MemorySmall", top("memory_limit: 8MB"), `multi_db.memory_limit: "8MB" is too small; use at least 16MB`},
		{"MemoryWord", top("memory_limit: lots"), `multi_db.memory_limit: "lots" is no size; use a number of bytes, or one with a unit such as 256MB`},
		{"MemoryNegative", top("memory_limit: -256MB"), `multi_db.memory_limit: "-256MB" is no size; use a number of bytes, or one with a unit such as 256MB`},
		{"MemoryHuge", top("memory_limit: 16EB"), `multi_db.memory_limit: "16EB" is no size; use a number of bytes, or one with a unit such as 256MB`},
		{"ControlCharacter", top(`state_dir: "/a\nb"`), "multi_db.state_dir: the value contains a control character or a line break; remove it"},
		{"LongValue", top("format: " + strings.Repeat("x", 5000)), `multi_db.format: "` + strings.Repeat("x", 100) + `..." is unknown; use "lz4"`},

		// s3.
		{"S3Scalar", "multi_db:\n  discovery_pattern: /data/*.db\n  s3: s3://b\n", "multi_db.s3: a plain value where a section is expected; write its keys on lines of their own, indented"},
		{"S3Null", "multi_db:\n  discovery_pattern: /data/*.db\n  s3:\n", "multi_db.s3.bucket: missing or empty; use the name of a bucket"},
		{"S3NoPath", "multi_db:\n  discovery_pattern: /data/*.db\n  s3:\n    bucket: abc\n", `multi_db.s3.path: missing or empty; use a template such as "{{project}}/{{tenant}}"`},
		{"S3UnknownKey", s3("buckets: a"), "multi_db.s3.buckets: unknown key; the nearest known one is bucket"},
		{"S3Region", s3("region: us east"), `multi_db.s3.region: "us east" is no region; use one such as "us-east-1"`},
		{"S3BucketURL", s3("bucket: s3://backups"), `multi_db.s3.bucket: "s3://backups" is no bucket name; use the name alone, without s3:// and without slashes`},
		{"S3EndpointScheme", s3("endpoint: 127.0.0.1:9000"), `multi_db.s3.endpoint: "127.0.0.1:9000" is no endpoint; use one such as "https://s3.example.com" or "http://127.0.0.1:9000"`},
		{"S3EndpointFTP", s3("endpoint: ftp://host"), `multi_db.s3.endpoint: "ftp://host" is no endpoint; use one such as "https://s3.example.com" or "http://127.0.0.1:9000"`},
		{"S3EndpointPath", s3("endpoint: http://host/bucket"), `multi_db.s3.endpoint: "http://host/bucket" has more than a host and a port; use one such as "https://s3.example.com" or "http://127.0.0.1:9000"`},
		{"S3EndpointQuery", s3("endpoint: http://host?x=1"), `multi_db.s3.endpoint: "http://host?x=1" has more than a host and a port; use one such as "https://s3.example.com" or "http://127.0.0.1:9000"`},
		{"S3EndpointPort", s3("endpoint: http://host:70000"), `multi_db.s3.endpoint: "http://host:70000" has no port from 1 to 65535; use one such as "https://s3.example.com" or "http://127.0.0.1:9000"`},
		{"S3EndpointUser", s3("endpoint: http://me:secret@host"), `multi_db.s3.endpoint: an endpoint has no user name and no password; use one such as "https://s3.example.com" or "http://127.0.0.1:9000"`},
		{"S3PathStyle", s3("force_path_style: maybe"), `multi_db.s3.force_path_style: "maybe" is neither true nor false`},
		{"S3KeyOnly", s3("access_key_id: id"), "multi_db.s3.secret_access_key: missing or empty beside access_key_id; set both or neither"},
		{"S3SecretOnly", s3("secret_access_key: hush"), "multi_db.s3.access_key_id: missing or empty beside secret_access_key; set both or neither"},
		{"S3SecretList", s3("access_key_id: id", "secret_access_key: [hush]"), "multi_db.s3.secret_access_key: a list where one value is expected"},
		{"S3SecretControl", s3("access_key_id: id", `secret_access_key: "hush\n"`), "multi_db.s3.secret_access_key: the value contains a control character or a line break; remove it"},
		// Without a space after its colon it may become a part of the line before, or a key.
		{"S3SecretJoined", s3("endpoint: http://host", "  secret_access_key:hush"), "multi_db.s3.endpoint: the value goes on with secret_access_key; write a space after the colon of that key"},
		{"S3SecretJoinedHyphen", s3("region: us-east-1", "  Secret-Access-Key:hush"), "multi_db.s3.region: the value goes on with secret_access_key; write a space after the colon of that key"},
		{"S3SecretKey", "multi_db:\n  discovery_pattern: /data/*.db\n  s3: {bucket: abc, secret_access_key:hush}\n", "multi_db.s3.secret_access_key: write a space after its colon"},
		{"S3UploadsHigh", s3("max_concurrent_uploads: 5000"), "multi_db.s3.max_concurrent_uploads: 5000 is out of range; use 1 to 1000"},
		{"S3UploadsZero", s3("max_concurrent_uploads: 0"), "multi_db.s3.max_concurrent_uploads: 0 is out of range; use 1 to 1000"},
		{"S3UploadsHuge", s3("max_concurrent_uploads: 99999999999999999999"), "multi_db.s3.max_concurrent_uploads: 99999999999999999999 is out of range; use 1 to 1000"},
		{"S3UploadsWord", s3("max_concurrent_uploads: many"), `multi_db.s3.max_concurrent_uploads: "many" is no whole number; use 1 to 1000`},
		{"S3UploadsFraction", s3("max_concurrent_uploads: 1.5"), `multi_db.s3.max_concurrent_uploads: "1.5" is no whole number; use 1 to 1000`},
		{"S3StorageClass", s3("storage_class: cheap one"), `multi_db.s3.storage_class: "cheap one" is no storage class; use one such as "STANDARD_IA"`},
		{"S3SSE", s3("sse: yes"), `multi_db.s3.sse: "yes" is unknown; use "AES256" or "aws:kms"`},
		{"S3KMSKey", s3("sse_kms_key_id: k"), `multi_db.s3.sse_kms_key_id: "k" has no effect with sse: ""; use sse: "aws:kms"`},
		{"S3KMSKeyAES", s3("sse: AES256", "sse_kms_key_id: k"), `multi_db.s3.sse_kms_key_id: "k" has no effect with sse: "AES256"; use sse: "aws:kms"`},

		// file.
		{"FileNoDirectory", file(`path: "{{tenant}}"`), "multi_db.file.directory: missing or empty; use the absolute path of a directory"},
		{"FileRelative", file("directory: backup", `path: "{{tenant}}"`), `multi_db.file.directory: "backup" is not absolute; use a path that begins with a slash`},
		{"FileNoPath", file("directory: /backup"), `multi_db.file.path: missing or empty; use a template such as "{{project}}/{{tenant}}"`},
		{"FileUploads", file("directory: /backup", `path: "{{tenant}}"`, "max_concurrent_uploads: -1"), "multi_db.file.max_concurrent_uploads: -1 is out of range; use 1 to 1000"},
		{"FileUnknownKey", file("dir: /backup", `path: "{{tenant}}"`), "multi_db.file.dir: unknown key; the nearest known one is directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config, err := ParseConfig([]byte(tt.text), Globals{})
			if err == nil {
				t.Fatalf("expected an error, got %+v", config)
			}
			if got := err.Error(); got != tt.want {
				t.Fatalf("\n got: %s\nwant: %s", got, tt.want)
			}
			if config != nil {
				t.Fatal("configuration beside an error")
			}
			if strings.Contains(err.Error(), "hush") {
				t.Fatal("secret in an error")
			}
		})
	}
}
