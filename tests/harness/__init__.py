"""Real things for the tests to drive: a kernel, a JupyterLab in a browser. Nothing here knows quik_nb."""
