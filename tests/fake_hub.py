"A server on loopback that speaks as much of Hugging Face's hub as pushing and fetching a model takes"
import base64,hashlib,json,re,threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer
from urllib.parse import unquote,urlsplit

class FakeHub(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass

    def answer(self, data=b'', status=200, **headers):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for k,v in {'Content-Length': len(body), 'Content-Type': 'application/json', **headers}.items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command!='HEAD': self.wfile.write(body)

    def handle_all(self):
        size = int(self.headers.get('Content-Length') or 0)
        body,path,hub = self.rfile.read(size),unquote(urlsplit(self.path).path),self.server
        hub.asked.append((self.command, path))
        if self.command=='PUT': hub.blobs[hashlib.sha256(body).hexdigest()] = body; return self.answer()
        if path=='/api/repos/create': return self.create(json.loads(body))
        if path=='/api/validate-yaml': return self.answer(dict(errors=[], warnings=[]))
        if m := re.fullmatch(r'/(?:api/models/)?([\w-]+/[\w-]+?)(?:\.git)?/(preupload|info/lfs/objects/batch|commit|revision|tree|resolve)(?:/([^/]+))?(?:/(.+))?', path):
            repo,what,_,name = m.groups()
            if repo not in hub.repos: return self.answer(dict(error='Repository not found'), 404, X_Error_Code='RepoNotFound')
            return getattr(self, what.split('/')[-1])(hub.repos[repo], body, name)
        self.answer(dict(error=f'unknown: {self.command} {path}'), 404)
    do_GET = do_HEAD = do_POST = do_PUT = handle_all

    def url(self, path): return f'http://127.0.0.1:{self.server.server_port}/{path}'
    def create(self, o):
        name = f"{o.get('organization') or 'anna'}/{o['name']}"
        self.server.private = o.get('private') or o.get('visibility')=='private'
        self.server.repos.setdefault(name, {})
        self.answer(dict(url=self.url(name), id=name, name=name))
    def preupload(self, repo, body, _):
        files = [dict(path=o['path'], uploadMode='lfs' if o['path'].endswith('.safetensors') else 'regular', shouldIgnore=False) for o in json.loads(body)['files']]
        self.answer(dict(files=files))
    def batch(self, repo, body, _):
        objects = [dict(oid=o['oid'], size=o['size'], authenticated=True, actions=dict(upload=dict(href=self.url(f"upload/{o['oid']}"))))
                   for o in json.loads(body)['objects']]
        self.answer(dict(transfer='basic', objects=objects))
    def commit(self, repo, body, _):
        for o in map(json.loads, body.splitlines()):
            value = o['value']
            if o['key']=='file': repo[value['path']] = base64.b64decode(value['content'])
            if o['key']=='lfsFile': repo[value['path']] = self.server.blobs[value['oid']]
            if o['key']=='deletedFile': repo.pop(value['path'])
        self.answer(dict(commitUrl=self.url('anna/mails/commit/')+self.sha(repo), commitOid=self.sha(repo), hookOutput=''))
    def revision(self, repo, *_):
        self.answer(dict(id='anna/mails', sha=self.sha(repo), siblings=[dict(rfilename=o) for o in repo], private=False, tags=[], downloads=0, likes=0))
    def tree(self, repo, *_):
        self.answer([dict(type='file', path=k, size=len(v), oid=hashlib.sha1(v).hexdigest()) for k,v in repo.items()])
    def resolve(self, repo, _, name):
        if name not in repo: return self.answer(status=404, X_Error_Code='EntryNotFound', X_Repo_Commit=self.sha(repo))
        self.answer(repo[name], ETag=f'"{hashlib.sha1(repo[name]).hexdigest()}"', X_Repo_Commit=self.sha(repo))
    def sha(self, repo): return hashlib.sha1(b''.join(k.encode()+v for k,v in sorted(repo.items()))).hexdigest()

@contextmanager
def fake_hub():
    "A server; `repos` holds the files of each repository by name, `asked` what was asked for"
    hub = ThreadingHTTPServer(('127.0.0.1', 0), FakeHub)
    hub.repos,hub.blobs,hub.asked,hub.private = {},{},[],None
    hub.address = f'http://127.0.0.1:{hub.server_port}'
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try: yield hub
    finally:
        hub.shutdown()
        hub.server_close()
