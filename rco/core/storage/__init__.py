"""Where files live: addresses of local files and of objects in an S3 store, and how files get there and back.

- `addresses`: kinds of address (`is_remote`, `local_path`);
- `contents`: what lies at an address of either kind (`listing`, `exists`, `fingerprint`, `remove`);
- `transfer`: to this machine and back (`fetch`, `upload`);
- `local`: files of a folder and their digest (`list_files`, `content_digest`);
- `s3`: the client and the store's refusals in words; `retries`: what is tried again, and `DamagedError`;
- `probe`: whether a store works (`probe_store`).

This package is the only one that imports boto3, and only once an S3 address is used.
"""
