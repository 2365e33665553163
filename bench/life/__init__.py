"""Does anybody notice that the proxy reloads, replaces itself, and loses workers?"""
