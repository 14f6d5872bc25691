BEGIN TRANSACTION;
CREATE TABLE images (
        name TEXT PRIMARY KEY,
        digest TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        record TEXT NOT NULL
    ) STRICT;
INSERT INTO "images" VALUES('docker.io/library/app:latest','sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',1700000000000,'{"name":"docker.io/library/app:latest","digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","config":{"entrypoint":[],"cmd":["/bin/app"],"env":[],"workdir":"","user":""},"size_bytes":31457280,"platform":"linux/amd64","created_at_ms":1700000000000,"tags":{}}');
CREATE TABLE instances (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        created_at_ms INTEGER NOT NULL,
        record TEXT NOT NULL
    ) STRICT;
INSERT INTO "instances" VALUES('wbquk0snjbr1wrfvy9c2smh8','web',1700000000001,'{"id":"wbquk0snjbr1wrfvy9c2smh8","spec":{"name":"web","image":"docker.io/library/app:latest","backend":"qemu-microvm","memory":256,"vcpus":2,"overlay":10737418240,"network":true,"tags":{"team":"a"},"env":{"A":"1"},"program":{"argv":["/bin/app","serve"],"env":["A=1"],"workdir":"/","user":"app"}},"phase":{"phase":"resting","state":"standby","snapshot":"unvehqqrz3llo1jch569rbk2"},"created_at_ms":1700000000001,"started_at_ms":1700000001000,"stopped_at_ms":1700000002000,"generation":3,"source":{"snapshot":"jamrpjks9pxac284gu1sv5x0"},"image_digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","seat":{"pid":4242,"start_time":77},"ram_base":"unvehqqrz3llo1jch569rbk2","exit":{"code":137,"message":"killed by signal 9 (SIGKILL)"},"mac":"02:00:00:00:00:01","phases":{"durations_ms":{"running":1000},"current":"standby","since_ms":1700000002000}}');
CREATE TABLE snapshots (
        id TEXT PRIMARY KEY,
        name TEXT,
        source_instance TEXT NOT NULL,
        internal INTEGER NOT NULL,
        created_at_ms INTEGER NOT NULL,
        record TEXT NOT NULL
    ) STRICT;
INSERT INTO "snapshots" VALUES('unvehqqrz3llo1jch569rbk2','before','wbquk0snjbr1wrfvy9c2smh8',0,1700000002001,'{"id":"unvehqqrz3llo1jch569rbk2","name":"before","kind":"standby","internal":false,"source_instance":"wbquk0snjbr1wrfvy9c2smh8","source_name":"web","backend":"qemu-microvm","created_at_ms":1700000002001,"size_bytes":5242880,"tags":{},"spec":{"name":"web","image":"docker.io/library/app:latest","backend":"qemu-microvm","memory":256,"vcpus":2,"overlay":10737418240,"network":true,"tags":{"team":"a"},"env":{"A":"1"},"program":{"argv":["/bin/app","serve"],"env":["A=1"],"workdir":"/","user":"app"}},"image_digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","memory":256}');
CREATE TABLE timelines (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        instance TEXT NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
        record TEXT NOT NULL
    ) STRICT;
INSERT INTO "timelines" VALUES(1,'wbquk0snjbr1wrfvy9c2smh8','{"op":"restore","instance":"wbquk0snjbr1wrfvy9c2smh8","at_ms":7,"total_us":80000,"ok":false,"error":"restore web: load snapshot: no such file","steps":[{"name":"load snapshot","start_us":10,"took_us":70000,"note":"resume on load"}]}');
CREATE UNIQUE INDEX snapshot_names ON snapshots (source_instance, name) WHERE name IS NOT NULL;
CREATE INDEX image_digests ON images (digest);
CREATE INDEX timelines_of_instance ON timelines (instance, seq);
COMMIT;
PRAGMA user_version = 1;
