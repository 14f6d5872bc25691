// One round with the official TypeScript SDK: boot, standby, restore, fork, snapshot, delete.
//
// In: HEARTH_BIN and HEARTH_TEST_KERNEL_DIR; without them, root, QEMU or busybox it is skipped.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readlinkSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import test from 'node:test';

import Hypeman, { ConflictError, NotFoundError, UnprocessableEntityError } from '@onkernel/hypeman';

function missing() {
  for (const name of ['HEARTH_BIN', 'HEARTH_TEST_KERNEL_DIR']) {
    if (!process.env[name]) return `${name} is not set: \`cargo xtask ci\` sets it`;
  }
  if (process.getuid() !== 0) return 'real VMs need root';
  if (!existsSync('/usr/bin/qemu-system-x86_64')) return 'there is no qemu-system-x86_64: install qemu-system-x86';
  if (!existsSync('/bin/busybox')) return 'there is no busybox: install busybox-static';
  return undefined;
}

/** Starts a daemon with a data directory below `directory`, and waits until it is ready. */
async function serve(hearth, directory) {
  const daemon = spawn(hearth, ['serve', '--data-dir', path.join(directory, 'data'), '--listen', '127.0.0.1:0'], {
    cwd: directory,
    env: { ...process.env, HEARTH_KERNEL_DIR: path.resolve(process.env.HEARTH_TEST_KERNEL_DIR), HEARTH_NETWORK_CIDR: '10.110.2.0/24' },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const ended = new Promise((resolve) => daemon.on('exit', resolve));
  const url = await new Promise((resolve, reject) => {
    const said = [];
    createInterface({ input: daemon.stderr }).on('line', (line) => {
      said.push(line);
      const ready = /^hearth: ready on (\S+),/.exec(line);
      if (ready) resolve(ready[1]);
    });
    ended.then(() => reject(new Error(`the daemon did not get ready:\n${said.join('\n')}`)));
  });
  return { daemon, ended, url };
}

/** A root file system with nothing but busybox. */
function makeRoot(directory) {
  mkdirSync(path.join(directory, 'bin'), { recursive: true });
  copyFileSync('/bin/busybox', path.join(directory, 'bin/busybox'));
  for (const name of ['sh', 'sleep', 'echo']) symlinkSync('busybox', path.join(directory, 'bin', name));
}

/** Kills what works below `directory`: VMMs outlive a daemon, and a test that failed. */
function killVmms(directory) {
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      if (readlinkSync(`/proc/${pid}/cwd`).startsWith(`${directory}/data/`)) process.kill(Number(pid), 'SIGKILL');
    } catch {
      // It is gone, or no process of ours.
    }
  }
}

test('one round with the TypeScript SDK', { timeout: 300_000 }, async (t) => {
  const reason = missing();
  if (reason) {
    console.log(`SKIPPED: ${reason}`);
    t.skip(reason);
    return;
  }
  const hearth = path.resolve(process.env.HEARTH_BIN);
  const directory = mkdtempSync(path.join(tmpdir(), 'hearth-sdk-node-'));
  const { daemon, ended, url } = await serve(hearth, directory);
  try {
    makeRoot(path.join(directory, 'root'));
    const env = { ...process.env, HEARTH_URL: url };
    execFileSync(hearth, ['image', 'import', path.join(directory, 'root'), '--name', 'smoke:1'], { env });

    const client = new Hypeman({ apiKey: 'x', baseURL: url });
    assert.equal((await client.health.check()).status, 'ok');
    assert.ok((await client.capabilities.get()).default_runtime.available);
    assert.equal((await client.images.create({ name: 'smoke:1' })).status, 'ready');

    const script = 'echo smoke is here; exec sleep 100000';
    const made = await client.instances.create({
      name: 'web',
      image: 'smoke:1',
      size: '128MB',
      entrypoint: ['/bin/sh', '-c'],
      cmd: [script],
    });
    assert.equal((await client.instances.wait(made.id, { state: 'Running', timeout: '60s' })).state, 'Running');
    assert.deepEqual((await client.instances.list({ state: 'Running' })).map((one) => one.name), ['web']);
    assert.ok((await client.instances.stat('web', { path: '/bin/busybox' })).is_file);

    let heard = false;
    for await (const line of await client.instances.logs('web', { tail: 1000, follow: true })) {
      heard = line.includes('smoke is here');
      if (heard) break;
    }
    assert.ok(heard);

    assert.equal((await client.instances.standby('web', {})).state, 'Standby');
    const fork = await client.instances.fork('web', { name: 'fork', target_state: 'Running' });
    assert.equal(fork.state, 'Running');
    assert.equal((await client.instances.restore('web')).state, 'Running');
    const snapshot = await client.instances.snapshots.create('web', { kind: 'Standby', name: 'one' });
    assert.deepEqual((await client.snapshots.list()).map((one) => one.id), [snapshot.id]);
    assert.equal((await client.snapshots.fork(snapshot.id, { name: 'again' })).state, 'Running');
    await client.snapshots.delete(snapshot.id);

    await assert.rejects(client.instances.get('nobody'), NotFoundError);
    await assert.rejects(client.instances.fork('web', { name: 'fork', from_running: true }), ConflictError);
    await assert.rejects(
      client.instances.create({ name: 'other', image: 'smoke:1', ttl: '1h' }),
      UnprocessableEntityError,
    );

    for (const instance of await client.instances.list()) await client.instances.delete(instance.id);
    assert.deepEqual(await client.instances.list(), []);
    daemon.kill('SIGTERM');
    assert.equal(await ended, 0);
  } finally {
    daemon.kill('SIGKILL');
    await ended;
    killVmms(directory);
    rmSync(directory, { recursive: true, force: true });
  }
});
