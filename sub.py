def sub(p,*pairs):
    s=open(p).read()
    for i,(a,b) in enumerate(pairs):
        if s.count(a)!=1:
            print("!!", p, i, s.count(a), a[:80].replace("\n","\\n")); continue
        s=s.replace(a,b,1)
    open(p,'w').write(s)
