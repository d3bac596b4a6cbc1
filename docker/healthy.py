"""Exit code 0 when the API of this container answers /healthz; the image has no curl."""

import os
import sys
from urllib.error import URLError
from urllib.request import urlopen

try:
    with urlopen(f"http://127.0.0.1:{os.environ.get('HEADROOM_PORT', '8000')}/healthz", timeout=4) as answer:
        print(answer.status)
except URLError as error:
    sys.exit(f"not healthy: {error.reason}")
